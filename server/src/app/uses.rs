//! When tokens were used last: gathered in memory, told to the store by the sweep, a token at most once a minute. What a
//! crash loses is a minute of a date for people.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use kiln_core::{Millis, id::TokenId};

use super::{App, Result, work::Work};
use crate::store::{TokenRow, Tx, jobs::Effects};

/// A use so soon after the one that is stored is not told.
const RARELY: Millis = 60_000;
/// Tokens that are gathered at most; the others are told with a later use.
const CAPACITY: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<HashMap<TokenId, Millis>>);

impl Uses {
    pub(super) fn note(&self, token: &TokenRow, now: Millis) {
        if token.last_used_at.is_some_and(|stored| now.saturating_sub(stored) < RARELY) {
            return;
        }
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < CAPACITY || uses.contains_key(&token.id) {
            uses.insert(token.id, now);
        }
    }

    fn take(&self) -> Vec<(TokenId, Millis)> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken: Vec<_> = uses.drain().collect();
        // Rows are locked in one order.
        taken.sort_unstable();
        taken
    }
}

impl App {
    /// Tells the store which tokens were used.
    pub(super) async fn tell_uses(&self) -> Result<()> {
        let uses = self.0.uses.take();
        if uses.is_empty() { Ok(()) } else { self.write(&Touch(uses)).await }
    }
}

struct Touch(Vec<(TokenId, Millis)>);

#[async_trait]
impl Work for Touch {
    type Output = ();

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        tx.touch_tokens(&self.0).await?;
        Ok(((), Effects::default()))
    }
}
