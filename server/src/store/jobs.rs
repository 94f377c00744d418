//! The one function in which job rows change.
