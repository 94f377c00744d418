//! `Debug` of the messages that hold what must not be seen.

use std::fmt::{Debug, Formatter, Result};

use crate::v1;

/// Stands in for a value.
const HIDDEN: &str = "…";

impl Debug for v1::Secret {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Secret").field("name", &self.name).field("value", &HIDDEN).finish()
    }
}

impl Debug for v1::SetSecretRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("SetSecretRequest");
        shown.field("project", &self.project).field("name", &self.name);
        shown.field("value", &HIDDEN).finish()
    }
}

impl Debug for v1::CreateTokenResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("CreateTokenResponse");
        shown.field("token", &self.token).field("secret", &HIDDEN).finish()
    }
}

impl Debug for v1::EnrollAgentRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("EnrollAgentRequest");
        shown.field("name", &self.name).field("token", &HIDDEN).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_shows_what_it_hides() {
        let secret = v1::Secret { name: "N".into(), value: b"hush".to_vec() };
        let assign = v1::Assign { secrets: vec![secret.clone()], ..Default::default() };
        let submit = v1::SubmitBuildRequest { secrets: vec![secret], ..Default::default() };
        let set = v1::SetSecretRequest { value: b"hush".to_vec(), ..Default::default() };
        let made = v1::CreateTokenResponse { secret: "hush".into(), ..Default::default() };
        let enrol = v1::EnrollAgentRequest { token: "hush".into(), ..Default::default() };
        let shown = format!("{assign:?} {submit:?} {set:?} {made:?} {enrol:#?}");
        assert!(!shown.contains("hush") && !shown.contains("104"), "{shown}");
        assert_eq!(shown.matches(HIDDEN).count(), 5);
    }
}
