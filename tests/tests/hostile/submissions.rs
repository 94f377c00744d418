//! Submissions: cycles, floods, and builds of as many jobs as there may be.

use std::collections::BTreeSet;

use kiln_proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

use crate::server::{Server, shell};

#[tokio::test]
async fn cycles_are_refused_with_the_field_and_store_nothing() {
    let server = Server::start().await;
    let needs = |name: &str, needed: &str| {
        let need = v1::Need { job: needed.into(), artifacts: false };
        v1::JobSpec { needs: vec![need], ..shell(name) }
    };
    let ring: Vec<_> =
        (0..1_000).map(|n| needs(&format!("j{n}"), &format!("j{}", (n + 1) % 1_000))).collect();
    for jobs in [vec![needs("a", "a")], vec![needs("a", "b"), needs("b", "a")], ring] {
        let spec = Some(v1::BuildSpec { jobs, ..Default::default() });
        let request = v1::SubmitBuildRequest { spec, ..Default::default() };
        let refused = server.builds().submit_build(server.request(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        let details = refused.get_details_bad_request().unwrap();
        assert!(details.field_violations[0].field.contains("needs"), "{details:?}");
    }
    let request = server.request(v1::ListBuildsRequest::default());
    let listed = server.builds().list_builds(request).await.unwrap().into_inner();
    assert!(listed.builds.is_empty(), "{listed:?}");
    server.is_well().await;
}

#[tokio::test]
async fn ten_thousand_jobs_in_one_build_are_taken_and_cancelled() {
    let server = Server::start().await;
    let jobs: Vec<_> = (0..10_000)
        .map(|n| {
            let needed = (n > 0).then(|| v1::Need { job: format!("j{}", n / 2), artifacts: false });
            v1::JobSpec { needs: needed.into_iter().collect(), ..shell(&format!("j{n}")) }
        })
        .collect();
    let build = server.submit(jobs).await;
    let request = v1::CancelBuildRequest { build: build.id.clone(), ..Default::default() };
    server.builds().cancel_build(server.request(request)).await.unwrap();
    let request = v1::GetBuildRequest { build: build.id };
    let answer = server.builds().get_build(server.request(request)).await.unwrap().into_inner();
    assert_eq!(answer.jobs.len(), 10_000);
    assert_eq!(answer.build.unwrap().state(), v1::BuildState::Cancelled);
    server.is_well().await;
}

#[tokio::test]
async fn a_flood_of_submissions_loses_none_that_was_taken() {
    let server = Server::start().await;
    let spec = v1::BuildSpec { jobs: vec![shell("a"), shell("b")], ..Default::default() };
    let flood = (0..1_000).map(|_| {
        let (mut builds, spec) = (server.builds(), Some(spec.clone()));
        let request = v1::SubmitBuildRequest { spec, ..Default::default() };
        let request = server.request(request);
        async move { builds.submit_build(request).await }
    });
    let mut taken = BTreeSet::new();
    for answer in futures::future::join_all(flood).await {
        match answer {
            Ok(answer) => assert!(taken.insert(answer.into_inner().build.unwrap().id)),
            Err(refused) => {
                let may_return = refused.get_details_retry_info().is_some();
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
                assert!(may_return, "when to come back: {refused:?}");
            }
        }
    }
    println!("{} of 1000 were taken at once", taken.len());
    assert!(!taken.is_empty());
    let mut stored = BTreeSet::new();
    let mut page = String::new();
    loop {
        let request = v1::ListBuildsRequest { page_token: page, ..Default::default() };
        let answer = server.builds().list_builds(server.request(request)).await.unwrap();
        let answer = answer.into_inner();
        stored.extend(answer.builds.into_iter().map(|build| build.id));
        page = answer.next_page_token;
        if page.is_empty() {
            break;
        }
    }
    assert_eq!(stored, taken, "what was taken is stored, and nothing else is");
    server.is_well().await;
}
