//! Secrets over the wire: they reach the agent that runs the job, in Assign and in Welcome, and nobody else.

use kiln_proto::v1::{self, LeaseState, secret_service_client::SecretServiceClient};
use tonic::Code;

use crate::world::{Client, World, shell};

fn secrets(world: &World) -> SecretServiceClient<Client> {
    SecretServiceClient::new(world.client(&world.admin))
}

fn set(name: &str, value: &[u8]) -> v1::SetSecretRequest {
    v1::SetSecretRequest { project: String::new(), name: name.into(), value: value.to_vec() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_reaches_the_job_that_asks_and_is_repeated_after_a_cut() {
    let world = World::start().await;
    let answer = secrets(&world).set_secret(set("TOKEN", b"hush")).await.unwrap().into_inner();
    let info = answer.secret.unwrap();
    assert!(answer.created);
    assert_eq!((info.name.as_str(), info.set_by.as_str(), info.key.len()), ("TOKEN", "admin", 16));
    let mut agent = world.agent("box").await;
    let mut link = agent.connect(&[]).await;
    let plain = shell("plain");
    let asking = v1::JobSpec { secrets: vec!["TOKEN".into()], ..shell("asking") };
    world.submit(vec![plain, asking]).await;
    let mut assigns = [link.assigned().await, link.assigned().await];
    assigns.sort_by_key(|assign| assign.spec.as_ref().unwrap().name.clone());
    let wanted = vec![v1::Secret { name: "TOKEN".into(), value: b"hush".to_vec() }];
    assert_eq!(assigns[0].secrets, wanted);
    assert_eq!(assigns[1].secrets, []);
    for assign in &assigns {
        link.start(&assign.lease).await;
    }

    // The new value is for leases to come.
    secrets(&world).set_secret(set("TOKEN", b"new")).await.unwrap();
    let journal: Vec<_> =
        assigns.iter().map(|assign| (assign.lease.as_str(), LeaseState::Running)).collect();
    let link = agent.connect(&journal).await;
    let of = |lease: &str| link.welcome.keep.iter().find(|kept| kept.lease == lease).unwrap();
    assert_eq!(of(&assigns[0].lease).secrets, wanted);
    assert_eq!(of(&assigns[1].lease).secrets, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_name_their_field_and_change_nothing() {
    let world = World::start().await;
    let mut client = secrets(&world);
    let large = vec![b'x'; (64 << 10) + 1];
    for (request, field) in [
        (set("token", b"x"), "name: "),
        (set("", b"x"), "name: "),
        (set("A", b""), "value: "),
        (set("A", &large), "value: "),
    ] {
        let status = client.set_secret(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status:?}");
    }
    let project = "default".to_owned();
    let list = v1::ListSecretsRequest { project: project.clone() };
    assert_eq!(client.list_secrets(list).await.unwrap().into_inner().secrets, []);
    let delete = v1::DeleteSecretRequest { project, name: "NONE".into() };
    assert_eq!(client.delete_secret(delete).await.unwrap_err().code(), Code::NotFound);
    let status = client
        .set_secret(v1::SetSecretRequest { project: "nowhere".into(), ..set("A", b"x") })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}
