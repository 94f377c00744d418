//! Followers: each gets all bytes and stages, on every store.

use super::*;

async fn follow(rig: &Rig, lease: Option<LeaseId>, offset: u64) -> Follower {
    Follower::new(&rig.logs, rig.world.job, lease, "", offset).await.unwrap()
}

#[tokio::test]
async fn followers_beside_a_writer_all_get_the_same_bytes() {
    on_each(async |rig: Rig| {
        let bytes = noise(1_300_000);
        let write = async {
            let mut writer = rig.writer().await.unwrap();
            for (at, chunk) in bytes.chunks(33_333).enumerate() {
                writer.append(at as u64 * 33_333, &[Bytes::copy_from_slice(chunk)]).await.unwrap();
            }
            rig.world.end(rig.world.lease, LeasePhase::Finished, bytes.len() as u64).await;
            rig.world.finish_job().await;
            writer.finish(bytes.len() as u64).await.unwrap();
            rig.logs.sweep().await.unwrap();
        };
        let read = async |offset: u64| {
            let mut follower = follow(&rig, None, offset).await;
            let (mut got, mut last) = (Vec::new(), Piece::default());
            while let Some(piece) = follower.next().await.unwrap() {
                assert!(piece.data.len() <= frames::FRAME);
                assert_eq!(piece.offset, offset + got.len() as u64);
                got.extend_from_slice(&piece.data);
                last = piece;
            }
            assert!(last.complete && !last.truncated);
            assert!(got == bytes[usize::try_from(offset).unwrap()..]);
        };
        tokio::join!(write, read(0), read(0), read(1_000_001), read(1_299_999));
        tokio::join!(read(0), read(500_000));
    })
    .await;
}

#[tokio::test]
async fn stages_come_at_their_offsets() {
    on_each(async |rig: Rig| {
        let stage = |name: &str, offset| Stage { name: name.to_owned(), time: 5, offset };
        let mut writer = rig.writer().await.unwrap();
        writer.stage(&stage("checkout", 0)).await.unwrap();
        writer.append(0, &[Bytes::from_static(b"fetching\nmaking\n")]).await.unwrap();
        writer.stage(&stage("script", 9)).await.unwrap();
        writer.stage(&stage("artifacts", 16)).await.unwrap();
        writer.finish(16).await.unwrap();
        drop(writer);
        assert_eq!(rig.writer().await.unwrap().stages(), 3);
        let pieces = async |offset| {
            let mut follower = follow(&rig, Some(rig.world.lease), offset).await;
            let mut seen = Vec::new();
            while let Some(piece) = follower.next().await.unwrap() {
                let data = String::from_utf8(piece.data.to_vec()).unwrap();
                seen.push((data, piece.stage.map(|stage| stage.name), piece.complete));
            }
            seen
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            pieces(0).await,
            [
                (String::new(), some("checkout"), false),
                ("fetching\n".to_owned(), some("script"), false),
                ("making\n".to_owned(), some("artifacts"), false),
                (String::new(), None, true),
            ]
        );
        assert_eq!(
            pieces(12).await,
            [("ing\n".to_owned(), some("artifacts"), false), (String::new(), None, true)]
        );
    })
    .await;
}

#[tokio::test]
async fn a_follower_without_a_lease_goes_on_to_the_next_attempt() {
    on_each(async |rig: Rig| {
        rig.append(0, b"first").await.unwrap();
        let mut follower = follow(&rig, None, 2).await;
        assert_eq!(follower.next().await.unwrap().unwrap().data, "rst");
        let mut pinned = follow(&rig, Some(rig.world.lease), 0).await;
        assert_eq!(pinned.next().await.unwrap().unwrap().data, "first");
        assert!(follower.next().now_or_never().is_none(), "the first attempt still runs");
        rig.world.end(rig.world.lease, LeasePhase::Void, 0).await;
        let second = LeaseId::from_uuid(crate::clock::Clock::id(rig.world.clock.as_ref()));
        rig.world.give(second, 2).await;
        let mut writer = rig.logs.writer(rig.world.agent, second, MAIN).await.unwrap();
        writer.append(0, &[Bytes::from_static(b"second")]).await.unwrap();
        let piece = follower.next().await.unwrap().unwrap();
        assert_eq!((piece.lease, piece.data.as_ref()), (Some(second), &b"second"[..]));
        writer.finish(6).await.unwrap();
        rig.world.end(second, LeasePhase::Finished, 6).await;
        assert!(follower.next().now_or_never().is_none(), "the job may be tried again");
        rig.world.finish_job().await;
        let end = follower.next().await.unwrap().unwrap();
        assert!(end.complete && !end.truncated);
        assert_eq!(follower.next().await.unwrap(), None);
        rig.world.wait(Duration::from_secs(31));
        rig.world.wake.publish(&[Topic::Log(rig.world.lease)]);
        let end = pinned.next().await.unwrap().unwrap();
        assert!(end.complete && end.truncated, "its agent is lost");
    })
    .await;
}
