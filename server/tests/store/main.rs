//! One suite for all stores: written once, run on the memory store, SQLite and Postgres.
//!
//! Postgres is that of `KILN_TEST_POSTGRES`, a fresh database for each test. Without it those tests are skipped, or
//! fail where `KILN_TEST_REQUIRE=1`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "it is a test")]

mod agents;
mod audit;
mod builds;
mod claims;
mod fixture;
mod jobs;
mod leases;
mod secrets;
mod transactions;
mod wake;

use fixture::{Kind, Made};

/// A test for each store from one function `async fn(Made)`.
macro_rules! on_all_stores {
    ($($module:ident :: { $($name:ident),* $(,)? })*) => {
        mod memory {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::run(crate::Kind::Memory, crate::$module::$name).await;
                })*
            })*
        }
        mod sqlite {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::run(crate::Kind::Sqlite, crate::$module::$name).await;
                })*
            })*
        }
        mod postgres {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::run(crate::Kind::Postgres, crate::$module::$name).await;
                })*
            })*
        }
    };
}

async fn run<F, R>(kind: Kind, test: F)
where
    F: FnOnce(Made) -> R,
    R: Future<Output = ()>,
{
    let Some((made, ended)) = fixture::make(kind).await else { return };
    test(made).await;
    ended.clean().await;
}

on_all_stores! {
    audit:: {
        records_are_numbered_without_gaps_whoever_is_faster,
        a_record_goes_with_its_transaction,
        filters_and_pages,
        old_records_go_but_for_the_last,
    }
    transactions::{
        a_dropped_transaction_changes_nothing,
        readers_see_what_is_committed_only,
        eight_writers_never_find_the_database_locked,
        a_locked_build_is_changed_by_one_at_a_time,
        migrations_may_run_at_once,
        a_newer_schema_is_left_as_it_is,
    }
    builds::{
        projects_round_trip_and_names_are_unique,
        builds_round_trip_and_save_what_changes,
        a_key_is_used_once_even_within_a_batch,
        pages_follow_each_other_in_both_orders,
        filters_narrow_a_list,
        events_are_numbered_once,
        a_thousand_builds_in_one_set,
        an_old_build_goes_with_all_that_is_its_own_and_a_needed_one_stays,
    }
    jobs::{
        jobs_round_trip_in_every_state,
        a_save_of_another_version_is_a_conflict,
        needs_are_found_from_both_ends,
        classes_and_groups_are_made_once,
        members_of_a_group_come_in_order,
        ten_thousand_jobs_in_one_set,
        wrong_counts_and_needs_are_found,
    }
    leases::{
        leases_round_trip_and_open_ones_are_found,
        artifacts_are_replaced_as_a_whole,
    }
    claims::{
        a_crowd_of_one_project_hides_nobody,
        what_may_not_be_leased_is_no_candidate,
        a_wait_of_the_future_is_over,
        candidates_come_by_priority_and_age,
        the_least_used_projects_come_first,
        an_affinity_names_the_agent_that_is_warm,
        the_queue_is_counted,
        what_waits_and_what_is_open_is_counted,
        overdue_jobs_and_the_next_end_of_a_backoff_are_found,
    }
    secrets::{
        secrets_round_trip_in_their_scope,
        a_current_secret_has_its_name_alone,
        values_are_encrypted_anew_one_key_at_a_time,
        a_lease_keeps_the_value_that_it_was_given,
        a_value_goes_with_the_last_lease_that_has_it,
        secrets_of_done_builds_are_found_and_ended,
    }
    agents::{
        agents_round_trip_and_names_are_unique,
        an_evicted_agent_is_gone_but_known,
        a_beat_reaches_open_sessions_only,
        a_session_is_closed_by_the_beat_that_was_observed,
        tokens_round_trip,
        a_use_moves_on_only,
    }
}
