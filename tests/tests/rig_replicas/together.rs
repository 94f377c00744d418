//! Each step at another server. The sweeps are ten minutes apart: what is seen in time was told by a notification.

use crate::{
    farm::Farm,
    harness::{BUILD, id},
};

const LINES: usize = 400;

#[test]
fn what_is_begun_at_one_server_goes_on_at_the_others() {
    let config = "sweep_ms = 600000\n";
    let Some(mut farm) = Farm::start(config) else { return };
    let [a, b, c] = [0, 1, 2].map(|server| farm.port(server));
    farm.start_agent(b);
    let count = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.004; done; head -c 9000000 /dev/zero | tr '\\\\0' x > big; echo made > small"
    );
    let jobs = format!(
        "[[jobs]]\nname = \"make\"\nbackend = \"shell\"\nscript = \"{count}\"\nartifacts = [\"big\", \"small\"]\n\
         [[jobs]]\nname = \"use\"\nbackend = \"shell\"\nscript = \"cat small; wc -c < big\"\nneeds = [{{ job = \"make\", artifacts = true }}]\n"
    );
    let build = farm.submit(a, &jobs);
    let job = id(&farm.job(c, &build, "make")).to_owned();
    let mut watcher = farm.background("watch", c, &["watch", &build]);
    let mut follower = farm.background("follow", c, &["logs", "-f", &job]);

    assert!(watcher.wait(BUILD).success(), "{}", watcher.said());
    assert!(follower.wait(BUILD).success(), "{}", follower.said());
    let wanted = (0..LINES).fold(String::new(), |log, i| log + &format!("line {i}\n"));
    assert_eq!(String::from_utf8_lossy(&follower.out()), wanted);
    for port in [a, b, c] {
        assert_eq!(String::from_utf8_lossy(&farm.cli(port, &["logs", &job])), wanted);
        let seen = farm.json(port, &["show", &build]);
        assert_eq!(seen["build"]["state"], "succeeded", "{seen:#}");
        let used = id(&farm.job(port, &build, "use")).to_owned();
        let printed = farm.cli(port, &["logs", &used]);
        assert_eq!(String::from_utf8_lossy(&printed), "made\n9000000\n");
    }

    // Cancelled at C, where neither it nor its agent is.
    let build = farm.submit(
        a,
        "[[jobs]]\nname = \"wait\"\nbackend = \"shell\"\nscript = \"echo up; sleep 600\"\n",
    );
    let job = id(&farm.job(b, &build, "wait")).to_owned();
    let mut follower = farm.background("follow-2", a, &["logs", "-f", &job]);
    crate::process::until("the first line", BUILD, || (follower.out() == b"up\n").then_some(()));
    farm.cli(c, &["cancel", &build]);
    assert!(follower.wait(BUILD).success(), "{}", follower.said());
    assert_eq!(farm.done(b, &build)["build"]["state"], "cancelled");
    farm.finish();
}
