//! The table: fault × database × rounds × lost × duplicated × re-run × failed.

use std::{collections::BTreeMap, fmt};

use super::{evidence::Toll, fault::Database};

/// What all rounds came to.
#[derive(Debug, Default)]
pub struct Report {
    rows: BTreeMap<(usize, Database), Row>,
}

#[derive(Debug)]
struct Row {
    fault: &'static str,
    rounds: usize,
    toll: Toll,
}

impl Report {
    pub(super) fn add(&mut self, place: usize, fault: &'static str, on: Database, toll: Toll) {
        let fresh = Row { fault, rounds: 0, toll: Toll::default() };
        let row = self.rows.entry((place, on)).or_insert(fresh);
        row.rounds += 1;
        row.toll += toll;
    }

    /// Something was run, and nothing went wrong.
    pub fn is_clean(&self) -> bool {
        !self.rows.is_empty() && self.rows.values().all(|row| row.toll.is_clean())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = ["fault", "database", "rounds", "lost", "duplicated", "re-run", "failed"];
        let head = words.map(str::to_owned);
        let rule = [24, 10, 8, 6, 12, 8, 8].map(|width| "-".repeat(width - 2));
        let rows = self.rows.iter().map(|((_, on), row)| {
            let Toll { lost, duplicated, rerun, failed } = row.toll;
            let counts = [row.rounds, lost, duplicated, rerun, failed].map(|n| n.to_string());
            let [rounds, lost, duplicated, rerun, failed] = counts;
            let (fault, on) = (row.fault.to_owned(), on.name().to_owned());
            [fault, on, rounds, lost, duplicated, rerun, failed]
        });
        for [fault, on, rounds, lost, duplicated, rerun, failed] in
            [head, rule].into_iter().chain(rows)
        {
            writeln!(
                f,
                "| {fault:<24} | {on:<8} | {rounds:>6} | {lost:>6} | {duplicated:>10} | {rerun:>6} | {failed:>6} |"
            )?;
        }
        Ok(())
    }
}
