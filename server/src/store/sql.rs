//! The store on SQLite and Postgres.
