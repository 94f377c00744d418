//! Foreign objects: who is bound to a project is told of another project's objects that they do not exist, in the very
//! words for those that really do not. Every service asks [`within`] as soon as it has found the object.

use kiln_core::id::ProjectId;
use tonic::Status;

use crate::app::{BuildRow, Error, JobRow, Principal, ProjectRow};

/// Something that belongs to a project.
pub trait Owned {
    fn project(&self) -> ProjectId;

    /// What is said where there is none.
    fn missing(&self) -> Error;
}

impl Owned for BuildRow {
    fn project(&self) -> ProjectId {
        self.project
    }

    fn missing(&self) -> Error {
        Error::not_found("build", self.id)
    }
}

impl Owned for JobRow {
    fn project(&self) -> ProjectId {
        self.project
    }

    fn missing(&self) -> Error {
        Error::not_found("job", self.job.id)
    }
}

impl Owned for ProjectRow {
    fn project(&self) -> ProjectId {
        self.id
    }

    fn missing(&self) -> Error {
        Error::not_found("project", &self.name)
    }
}

/// The only project that a caller may touch, if it is bound to one.
pub fn bound(principal: &Principal) -> Option<ProjectId> {
    match principal {
        Principal::Token { project, .. } => *project,
        Principal::Agent { .. } => None,
    }
}

/// Whether what was found exists for the caller.
pub fn within<T: Owned>(principal: &Principal, found: &T) -> Result<(), Status> {
    match bound(principal) {
        Some(own) if own != found.project() => Err(found.missing().into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kiln_core::id::TokenId;
    use tonic_types::StatusExt;
    use uuid::Uuid;

    use super::*;
    use crate::app::Role;

    #[test]
    fn what_is_foreign_is_missing_in_the_same_words() {
        let project = |n: u128, name: &str| ProjectRow {
            id: ProjectId::from_uuid(Uuid::from_u128(n)),
            name: name.into(),
            weight: 1,
            max_running: 0,
            paused: false,
            running: 0,
            created_at: 0,
        };
        let (own, foreign) = (project(1, "own"), project(2, "foreign"));
        let bound_to = |project| Principal::Token {
            id: TokenId::from_uuid(Uuid::nil()),
            name: "t".into(),
            role: Role::Admin,
            project,
        };
        assert!(within(&bound_to(Some(own.id)), &own).is_ok());
        assert!(within(&bound_to(None), &foreign).is_ok());
        let told = within(&bound_to(Some(own.id)), &foreign).unwrap_err();
        let missing = Status::from(Error::not_found("project", "foreign"));
        let words = |status: &Status| {
            let info = status.get_details_error_info().unwrap();
            (status.code(), status.message().to_owned(), info.reason, info.metadata)
        };
        assert_eq!(words(&told), words(&missing));
    }
}
