//! An agent and a client of the version before: the messages as they were first written down, without what was added
//! since, and with the oldest protocol number that is still spoken. They are never changed; what they can't do any more
//! is a break of the promise that two versions work together.

use kiln_proto::v1::{self, session_request::Frame, session_response::Frame as Said};
use prost::Message;

use crate::world::{World, shell};

#[derive(Clone, PartialEq, Message)]
struct Hello {
    #[prost(string, tag = "1")]
    instance: String,
    #[prost(int64, tag = "2")]
    epoch: i64,
    #[prost(int32, tag = "3")]
    protocol_min: i32,
    #[prost(int32, tag = "4")]
    protocol_max: i32,
    #[prost(message, optional, tag = "5")]
    profile: Option<Profile>,
    /// Of no version: what an even newer one may add is passed over.
    #[prost(string, tag = "9999")]
    unheard_of: String,
}

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(string, tag = "1")]
    arch: String,
    #[prost(string, tag = "2")]
    os: String,
    #[prost(message, repeated, tag = "8")]
    backends: Vec<Offer>,
}

#[derive(Clone, PartialEq, Message)]
struct Offer {
    #[prost(string, tag = "1")]
    backend: String,
    #[prost(int32, tag = "2")]
    slots: i32,
    #[prost(string, repeated, tag = "4")]
    operations: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Welcome {
    #[prost(string, tag = "1")]
    session: String,
    #[prost(int32, tag = "2")]
    protocol: i32,
    #[prost(int64, tag = "3")]
    heartbeat_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Assign {
    #[prost(string, tag = "1")]
    session: String,
    #[prost(string, tag = "2")]
    lease: String,
    #[prost(message, optional, tag = "7")]
    spec: Option<Job>,
}

#[derive(Clone, PartialEq, Message)]
struct Job {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    backend: String,
    #[prost(string, tag = "4")]
    script: String,
}

#[derive(Clone, PartialEq, Message)]
struct Finished {
    #[prost(string, tag = "1")]
    lease: String,
    #[prost(message, optional, tag = "2")]
    outcome: Option<Outcome>,
}

#[derive(Clone, PartialEq, Message)]
struct Outcome {
    #[prost(int32, tag = "1")]
    state: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Submit {
    #[prost(message, optional, tag = "3")]
    spec: Option<Spec>,
}

#[derive(Clone, PartialEq, Message)]
struct Spec {
    #[prost(message, repeated, tag = "3")]
    jobs: Vec<Job>,
}

#[derive(Clone, PartialEq, Message)]
struct Got {
    #[prost(message, optional, tag = "1")]
    build: Option<Build>,
}

#[derive(Clone, PartialEq, Message)]
struct Build {
    #[prost(string, tag = "1")]
    id: String,
}

/// What the other side reads of a message.
fn read<T: Message + Default>(message: &impl Message) -> T {
    T::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn hello() -> v1::Hello {
    let operations = vec!["script".to_owned()];
    let offer = Offer { backend: "shell".to_owned(), slots: 1, operations };
    let profile =
        Profile { arch: "x86_64".to_owned(), os: "linux".to_owned(), backends: vec![offer] };
    read(&Hello {
        instance: "old".to_owned(),
        epoch: 1,
        protocol_min: 0,
        protocol_max: kiln_proto::PROTOCOL_MIN,
        profile: Some(profile),
        unheard_of: "anything".to_owned(),
    })
}

#[tokio::test]
async fn an_agent_of_the_version_before_does_its_work() {
    let world = World::start().await;
    let mut link = world.agent("worker").await.greet(hello()).await;
    let welcome: Welcome = read(&link.welcome);
    assert_eq!(welcome.protocol, kiln_proto::PROTOCOL_MIN);
    assert!(!welcome.session.is_empty() && welcome.heartbeat_ms > 0);
    let build = world.submit(vec![shell("a")]).await;
    let assign: Assign = read(&link.assigned().await);
    assert_eq!(assign.session, welcome.session);
    let spec = assign.spec.unwrap();
    assert_eq!((spec.name.as_str(), spec.script.as_str()), ("a", "true"));
    link.start(&assign.lease).await;
    link.say(Frame::Heartbeat(v1::Heartbeat::default())).await;
    link.hear(|word| matches!(word, Said::Beat(_)).then_some(())).await;
    let outcome = Some(Outcome { state: v1::OutcomeState::Succeeded.into() });
    link.say(Frame::Finished(read(&Finished { lease: assign.lease.clone(), outcome }))).await;
    assert_eq!(link.answered().await, (assign.lease, true));
    let (seen, _) = world.build(&build.id).await;
    assert_eq!(seen.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn a_client_of_the_version_before_is_served() {
    let world = World::start().await;
    let job = Job { name: "a".to_owned(), backend: "shell".to_owned(), script: "true".to_owned() };
    let submit = Submit { spec: Some(Spec { jobs: vec![job] }) };
    let answer = world.builds().submit_build(read::<v1::SubmitBuildRequest>(&submit)).await;
    let id = read::<Got>(&answer.unwrap().into_inner()).build.unwrap().id;
    let request = v1::GetBuildRequest { build: id.clone() };
    let answer = world.builds().get_build(request).await.unwrap().into_inner();
    assert_eq!(read::<Got>(&answer).build.unwrap().id, id);
    assert_eq!(answer.jobs.len(), 1);
}
