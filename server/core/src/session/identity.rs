//! Whose an identity is, when someone says Hello: an agent that comes back, or a copy of its data folder.

/// A session of this agent that is open.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    pub instance: &'a str,
    pub epoch: i64,
    /// It was heard within the grace time.
    pub alive: bool,
}

/// Why a Hello is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another data folder, or another machine, has this identity now.
    Elsewhere,
    /// The same data folder has said a later Hello.
    Outdated,
}

/// Whether a Hello may replace the sessions that are open.
///
/// The instance names the data folder on its machine in this boot, and a data folder has one process at a time: a
/// later Hello of the same instance proves that the earlier process, or its stream, is over. Another instance proves
/// nothing, whatever its epoch: it waits until nobody has heard of the first one for the grace time.
pub fn admit<'a>(
    open: impl IntoIterator<Item = Opened<'a>>,
    instance: &str,
    epoch: i64,
) -> Result<(), Refusal> {
    for session in open.into_iter().filter(|session| session.alive) {
        if session.instance != instance {
            return Err(Refusal::Elsewhere);
        }
        if session.epoch >= epoch {
            return Err(Refusal::Outdated);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(open: &[(&str, i64, bool)], instance: &str, epoch: i64) -> Result<(), Refusal> {
        let open = open.iter().map(|&(instance, epoch, alive)| Opened { instance, epoch, alive });
        admit(open, instance, epoch)
    }

    #[test]
    fn the_same_folder_comes_back_at_once_and_a_copy_waits_for_silence() {
        assert_eq!(told(&[], "here", 1), Ok(()));
        assert_eq!(told(&[("here", 1, true)], "here", 2), Ok(()), "a restart");
        assert_eq!(told(&[("here", 1, true)], "copy", 2), Err(Refusal::Elsewhere));
        assert_eq!(told(&[("here", 5, true)], "copy", 1_000), Err(Refusal::Elsewhere));
        assert_eq!(told(&[("here", 1, false)], "copy", 1), Ok(()), "it is dead");
        assert_eq!(told(&[("copy", 9, false), ("here", 1, true)], "here", 2), Ok(()));
    }

    #[test]
    fn a_hello_that_was_overtaken_changes_nothing() {
        assert_eq!(told(&[("here", 2, true)], "here", 1), Err(Refusal::Outdated));
        assert_eq!(told(&[("here", 2, true)], "here", 2), Err(Refusal::Outdated));
        assert_eq!(told(&[("here", 2, false)], "here", 1), Ok(()), "a folder that was restored");
    }
}
