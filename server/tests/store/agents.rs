//! Agents, sessions, tokens.

use kiln_core::{
    agent::{Admission, Load, Offer, Profile},
    id::{AgentId, SessionId, TokenId},
};
use kiln_server::store::{
    AgentCertificate, AgentRow, Error, EvictedAgentRow, Role, SessionRow, SharedStore, TokenRow,
};

use crate::fixture::{Made, project, uuid};

fn agent(n: u128) -> AgentRow {
    AgentRow {
        id: AgentId::from_uuid(uuid(n)),
        name: format!("agent-{n}"),
        credential_sha256: vec![0, 255, 7],
        admission: Admission::Paused { note: "disk".to_owned(), resume_at: Some(9) },
        profile: Profile {
            arch: "x86_64".to_owned(),
            backends: [("shell".to_owned(), Offer { slots: 2, ..Offer::default() })].into(),
            ..Profile::default()
        },
        load: Load::default(),
        created_at: 1,
        seen_at: 2,
        epoch: 3,
        certificate: Some(AgentCertificate { public_key_sha256: vec![9; 32], ends_at: 11 }),
    }
}

fn session(n: u128, of: &AgentRow) -> SessionRow {
    SessionRow {
        id: SessionId::from_uuid(uuid(n)),
        agent: of.id,
        instance: "i".to_owned(),
        epoch: 1,
        beat: 0,
        open: true,
        opened_at: 5,
    }
}

async fn seed(store: &SharedStore) -> [SessionRow; 3] {
    let agents = [agent(31), agent(32)];
    let sessions = [session(41, &agents[0]), session(42, &agents[0]), session(43, &agents[1])];
    let mut tx = store.begin().await.unwrap();
    for row in &agents {
        tx.insert_agent(row).await.unwrap();
    }
    tx.insert_sessions(&sessions).await.unwrap();
    tx.close_sessions(&[sessions[0].id]).await.unwrap();
    tx.commit().await.unwrap();
    sessions
}

pub(crate) async fn agents_round_trip_and_names_are_unique(Made { store, .. }: Made) {
    seed(&store).await;
    assert_eq!(store.agents().await.unwrap(), [agent(31), agent(32)]);
    let mut tx = store.begin().await.unwrap();
    let twin = AgentRow { name: "agent-31".to_owned(), ..agent(33) };
    let error = tx.insert_agent(&twin).await.unwrap_err();
    assert!(matches!(&error, Error::Exists { what: "agent", name } if name == "agent-31"));
    drop(tx);

    let mut tx = store.begin().await.unwrap();
    let mut row = tx.lock_agents(&[agent(31).id]).await.unwrap().remove(0);
    row.admission = Admission::Draining;
    row.epoch = 9;
    row.profile.cpu_millis = 4_000;
    row.load.memory_available_bytes = u64::MAX;
    tx.save_agents(std::slice::from_ref(&row)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.agents().await.unwrap(), [row.clone(), agent(32)]);
    assert_eq!(store.agent(row.id).await.unwrap(), Some(row.clone()));
    let of = |row: &AgentRow| (row.id, row.admission.clone());
    let mut all = store.admissions(None).await.unwrap();
    all.sort_by_key(|(id, _)| *id);
    assert_eq!(all, [of(&row), of(&agent(32))]);
    let asked = [AgentId::from_uuid(uuid(99)), row.id];
    assert_eq!(store.admissions(Some(&asked)).await.unwrap(), [of(&row)]);
    assert_eq!(store.admissions(Some(&[])).await.unwrap(), []);
}

pub(crate) async fn an_evicted_agent_is_gone_but_known(Made { store, .. }: Made) {
    let sessions = seed(&store).await;
    let AgentRow { id, name, credential_sha256, .. } = agent(32);
    let evicted = EvictedAgentRow { id, name, credential_sha256, evicted_at: 7 };
    let mut tx = store.begin().await.unwrap();
    tx.evict_agent(&evicted).await.unwrap();
    assert_eq!(tx.lock_agents(&[id]).await.unwrap(), []);
    tx.commit().await.unwrap();
    assert_eq!(store.agents().await.unwrap(), [agent(31)]);
    assert_eq!(store.evicted_agent(agent(31).id).await.unwrap(), None);
    assert_eq!(store.evicted_agent(id).await.unwrap(), Some(evicted));
    assert_eq!(store.sessions().await.unwrap(), [sessions[1].clone()]);
}

pub(crate) async fn a_beat_reaches_open_sessions_only(Made { store, .. }: Made) {
    let sessions = seed(&store).await;
    let load = |n| Load { load_millis: n, ..Load::default() };
    let beats = [(sessions[0].id, load(1)), (sessions[1].id, load(2)), (sessions[2].id, load(3))];
    let mut open = store.beat(&beats, 77).await.unwrap();
    open.sort();
    assert_eq!(open, [sessions[1].id, sessions[2].id]);
    assert_eq!(store.beat(&beats[..1], 99).await.unwrap(), []);
    assert_eq!(store.beat(&[], 99).await.unwrap(), []);
    let beats: Vec<_> = store.sessions().await.unwrap().iter().map(|row| row.beat).collect();
    assert_eq!(beats, [1, 1]);
    let row = store.agent(agent(31).id).await.unwrap().unwrap();
    assert_eq!((row.load, row.seen_at), (load(2), 77));
}

pub(crate) async fn a_session_is_closed_by_the_beat_that_was_observed(Made { store, .. }: Made) {
    let sessions = seed(&store).await;
    let id = sessions[1].id;
    store.beat(&[(id, Load::default())], 77).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    assert!(!tx.close_silent_session(id, 0).await.unwrap());
    let row = tx.lock_sessions(&[id]).await.unwrap().remove(0);
    assert_eq!((row.open, row.beat), (true, 1));
    assert_eq!(tx.lock_sessions_of(&[agent(31).id]).await.unwrap(), [row]);
    assert!(tx.close_silent_session(id, 1).await.unwrap());
    assert!(!tx.close_silent_session(id, 1).await.unwrap());
    assert!(!tx.lock_sessions(&[id]).await.unwrap()[0].open);
    assert!(tx.lock_sessions_of(&[agent(31).id]).await.unwrap().is_empty());
    tx.commit().await.unwrap();
    assert_eq!(store.sessions().await.unwrap(), sessions[2..]);
}

pub(crate) async fn tokens_round_trip(Made { store, .. }: Made) {
    let token = |n| TokenRow {
        id: TokenId::from_uuid(uuid(n)),
        name: "ci".to_owned(),
        role: Role::Enroller,
        project: None,
        secret_sha256: vec![1, 2, 3],
        created_at: 1,
        expires_at: Some(2),
        used: None,
        last_used_at: None,
        old_secret: None,
    };
    let bound = TokenRow {
        name: "release".to_owned(),
        role: Role::Submitter,
        project: Some(project(1).id),
        expires_at: None,
        ..token(52)
    };
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    tx.insert_token(&bound).await.unwrap();
    tx.insert_token(&token(51)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.tokens().await.unwrap(), [token(51), bound.clone()]);

    let mut tx = store.begin().await.unwrap();
    let refused = tx.insert_token(&token(53)).await;
    assert!(matches!(refused, Err(Error::Exists { what: "token", .. })), "{refused:?}");
    drop(tx);

    let mut tx = store.begin().await.unwrap();
    let mut row = tx.lock_token(token(51).id).await.unwrap().unwrap();
    row.used = Some((agent(31).id, 9));
    row.old_secret = Some((vec![4, 5], 99));
    tx.save_token(&row).await.unwrap();
    assert!(tx.delete_token(bound.id).await.unwrap());
    assert!(!tx.delete_token(bound.id).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(store.token(row.id).await.unwrap(), Some(row));
    assert_eq!(store.token(bound.id).await.unwrap(), None);
}

pub(crate) async fn a_use_moves_on_only(Made { store, .. }: Made) {
    let id = TokenId::from_uuid(uuid(51));
    let row = TokenRow {
        id,
        name: "ci".to_owned(),
        role: Role::Reader,
        project: None,
        secret_sha256: vec![1],
        created_at: 1,
        expires_at: None,
        used: None,
        last_used_at: None,
        old_secret: None,
    };
    let mut tx = store.begin().await.unwrap();
    tx.insert_token(&row).await.unwrap();
    tx.commit().await.unwrap();
    for (told, stored) in [(7, 7), (3, 7), (9, 9)] {
        let mut tx = store.begin().await.unwrap();
        let unknown = (TokenId::from_uuid(uuid(52)), told);
        tx.touch_tokens(&[(id, told), unknown]).await.unwrap();
        tx.commit().await.unwrap();
        let found = store.token(id).await.unwrap().unwrap();
        assert_eq!(found, TokenRow { last_used_at: Some(stored), ..row.clone() });
    }
}
