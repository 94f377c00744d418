//! Tokens and enrolment.

use sha2::{Digest, Sha256};

use super::*;
use crate::{
    app::{Error, Principal},
    store::Role,
};

scenarios! {
    a_token_is_known_by_its_secret_until_it_expires_or_is_revoked,
    an_enroller_token_makes_one_agent_and_repeats_its_answer_for_a_while,
    an_agent_is_known_by_its_credential,
    what_can_not_enrol_is_refused,
    the_first_administrator_is_made_once,
}

async fn a_token_is_known_by_its_secret_until_it_expires_or_is_revoked(world: World) {
    let (row, secret) =
        world.app.create_token("ci", Role::Submitter, None, Some(1_000)).await.unwrap();
    let principal = world.app.authenticate(&secret).await.unwrap();
    assert!(
        matches!(principal, Principal::Token { role: Role::Submitter, id, .. } if id == row.id)
    );
    let stored = world.store.token(row.id).await.unwrap().unwrap();
    assert_eq!(stored.secret_sha256, Sha256::digest(secret.as_bytes()).to_vec());

    let last = if secret.ends_with('A') { "B" } else { "A" };
    let forged = format!("{}{last}", &secret[..secret.len() - 1]);
    for wrong in [forged.as_str(), "", "kiln_", "kiln_x_y", "agt_1.2", &"x".repeat(10_000)] {
        let error = world.app.authenticate(wrong).await.unwrap_err();
        assert!(matches!(error, Error::Unauthenticated(_)), "{wrong}: {error}");
    }
    let error = world.app.create_token("ci", Role::Reader, None, None).await.unwrap_err();
    assert!(matches!(error, Error::Exists { field: "name", .. }), "{error}");

    world.clock.advance(1_000);
    assert!(world.app.authenticate(&secret).await.is_err(), "expired");
    let (row, secret) = world.app.create_token("other", Role::Reader, None, None).await.unwrap();
    world.app.revoke_token(row.id).await.unwrap();
    assert!(world.app.authenticate(&secret).await.is_err(), "revoked");
    assert!(matches!(world.app.revoke_token(row.id).await, Err(Error::NotFound { .. })));
}

async fn an_enroller_token_makes_one_agent_and_repeats_its_answer_for_a_while(world: World) {
    let (_, secret) = world.app.create_token("enrol", Role::Enroller, None, None).await.unwrap();
    let credential = [7_u8; 32];
    let digest = Sha256::digest(credential);
    let enroll = |name: &'static str, digest: Vec<u8>| {
        let (app, secret) = (world.app.clone(), secret.clone());
        async move { app.enroll(&secret, name, &digest).await }
    };
    assert!(matches!(enroll("-x", digest.to_vec()).await, Err(Error::Invalid(_))));
    assert!(matches!(enroll("x", vec![1]).await, Err(Error::Invalid(_))));
    let agent = enroll("box", digest.to_vec()).await.unwrap();
    assert_eq!(enroll("box", digest.to_vec()).await.unwrap(), agent, "a lost answer burns nothing");
    assert!(matches!(enroll("box", vec![0; 32]).await, Err(Error::Denied(_))));
    assert!(matches!(enroll("other", digest.to_vec()).await, Err(Error::Denied(_))));
    world.clock.advance(10 * 60 * 1_000);
    assert!(matches!(enroll("box", digest.to_vec()).await, Err(Error::Denied(_))));
}

async fn what_can_not_enrol_is_refused(world: World) {
    let (_, secret) = world.app.create_token("enrol", Role::Enroller, None, None).await.unwrap();
    world.app.enroll(&secret, "box", &[8; 32]).await.unwrap();
    let (_, second) = world.app.create_token("enrol-2", Role::Enroller, None, None).await.unwrap();
    let error = world.app.enroll(&second, "box", &[9; 32]).await.unwrap_err();
    assert!(matches!(error, Error::Exists { field: "name", .. }), "{error}");
    let (_, reader) = world.app.create_token("reader", Role::Reader, None, None).await.unwrap();
    assert!(matches!(world.app.enroll(&reader, "y", &[9; 32]).await, Err(Error::Denied(_))));
}

async fn an_agent_is_known_by_its_credential(world: World) {
    let (_, secret) = world.app.create_token("enrol", Role::Enroller, None, None).await.unwrap();
    let digest = Sha256::digest([7_u8; 32]);
    let agent = world.app.enroll(&secret, "box", &digest).await.unwrap();
    let hex = "07".repeat(32);
    let bearer = format!("{agent}.{hex}");
    let principal = world.app.authenticate(&bearer).await.unwrap();
    assert_eq!(principal, Principal::Agent { id: agent, name: "box".into(), certificate: None });
    let forged = format!("{agent}.{}", "08".repeat(32));
    assert!(matches!(world.app.authenticate(&forged).await, Err(Error::Unauthenticated(_))));
}

async fn the_first_administrator_is_made_once(world: World) {
    let secret = format!("kiln_{}_{}", "0".repeat(31) + "1", "a".repeat(43));
    assert!(world.app.ensure_admin_token("admin", &secret).await.unwrap());
    assert!(world.app.ensure_admin_token("admin", &secret).await.unwrap());
    let other = format!("kiln_{}_{}", "0".repeat(31) + "2", "b".repeat(43));
    assert!(!world.app.ensure_admin_token("admin", &other).await.unwrap());
    assert!(world.app.authenticate(&secret).await.is_ok());
    assert!(world.app.authenticate(&other).await.is_err());
    assert_eq!(world.app.tokens().await.unwrap().len(), 1);
}
