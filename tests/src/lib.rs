//! What the tests of the whole product share.

mod chance;
pub mod chaos;
pub mod fuzz;
pub mod simulation;
