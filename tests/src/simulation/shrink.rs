//! Makes a plan that fails short: what can be left out without healing the failure is left out.

use super::plan::Step;

/// A plan without any step that is not needed for `fails`; runs it at most `most` times.
pub(super) fn shrink(
    mut plan: Vec<Step>,
    mut most: usize,
    fails: impl Fn(&[Step]) -> bool,
) -> Vec<Step> {
    let mut chunk = plan.len().div_ceil(2).max(1);
    loop {
        let before = plan.len();
        let mut at = 0;
        while at < plan.len() {
            if most == 0 {
                return plan;
            }
            most -= 1;
            let end = (at + chunk).min(plan.len());
            let rest = [&plan[..at], &plan[end..]].concat();
            if fails(&rest) {
                plan = rest;
            } else {
                at = end;
            }
        }
        // A step may be needless only once another one is gone.
        match (chunk, before - plan.len()) {
            (1, 0) => return plan,
            (1, _) => {}
            _ => chunk = chunk.div_ceil(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plan::plan, *};

    #[test]
    fn only_the_steps_that_matter_are_left() {
        let plan = plan(1);
        let needed = [plan[3], plan[200], plan[201], plan[399]];
        let fails = |rest: &[Step]| needed.iter().all(|step| rest.contains(step));
        assert_eq!(shrink(plan.clone(), 10_000, fails), needed);
        let given_up = shrink(plan, 20, fails);
        assert!(fails(&given_up), "what is left still fails");
    }
}
