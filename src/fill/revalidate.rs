//! Asks whether a stale version is still good.

use std::sync::Arc;

use super::{
    Context,
    attempts::Attempts,
    check::{Reply, is_same_version},
    discover::FoundOut,
    freshness::{Storing, storing},
    ranking::Route,
    source::{Ask, AskRange, Head},
};
use crate::{
    asset::media_type_of,
    catalog::{Entry, Refusal, Revalidation, Want},
};

/// What a source says of a stale version.
enum Verdict {
    Good(Box<Head>),
    Changed,
}

impl Context {
    /// Answers a question of the demand board.
    pub(super) async fn revalidate(&self, revalidation: Revalidation) {
        let (entry, asker) = (Arc::clone(revalidation.entry()), revalidation.asker().clone());
        let route = Route::of(&asker);
        match self.ask_if_good(&entry, route).await {
            Ok(Verdict::Good(head)) => match self.lifetime(&entry, &head) {
                Storing::Store(lifetime) => {
                    entry.refresh(lifetime);
                    revalidation.valid(entry);
                }
                // The source has changed its mind: what is stored may not be kept.
                Storing::PassThrough => {
                    self.catalog.forget(&entry);
                    revalidation.refused(Refusal::Withdrawn);
                }
            },
            Ok(Verdict::Changed) => {
                let refusal = self.changed(&entry);
                match self.find_out(entry.key(), Want::Range { start: 0, end: None }, route).await {
                    Ok(FoundOut::Admitted(new, carried)) => {
                        revalidation.valid(Arc::clone(&new));
                        if let Some(carried) = carried {
                            self.write_carried(&new, carried, route).await;
                        }
                    }
                    // Whoever asks again finds out the same.
                    Ok(FoundOut::PassThrough) => revalidation.refused(refusal),
                    Err(refusal) => revalidation.refused(refusal),
                }
            }
            Err(refusal) => {
                if refusal.is_answer() {
                    self.catalog.forget(&entry);
                }
                revalidation.refused(refusal);
            }
        }
    }

    async fn ask_if_good(&self, entry: &Arc<Entry>, route: Route<'_>) -> Result<Verdict, Refusal> {
        let meta = entry.meta();
        let mut attempts = Attempts::new(self, entry.key(), route);
        while let Some(source) = attempts.next().await {
            // One byte, for sources that take no notice of the condition.
            let range = AskRange::Part { start: 0, end: Some(1) };
            let ask = Ask { range, if_range: None, unless: Some(&meta.validators) };
            let Some((answer, reply)) = attempts.ask(&source, entry.key(), &ask).await else { continue };
            Attempts::succeeded(&source);
            let total = match reply {
                Reply::NotModified => return Ok(Verdict::Good(Box::new(answer.head))),
                Reply::Part { total, .. } => Some(total),
                Reply::Whole(length) => length,
                Reply::Unsatisfiable(total) => total,
                Reply::Absent(_) => continue,
            };
            let same = total.is_some() && is_same_version(&answer.head, total, meta);
            return Ok(if same { Verdict::Good(Box::new(answer.head)) } else { Verdict::Changed });
        }
        Err(attempts.refusal())
    }

    fn lifetime(&self, entry: &Entry, head: &Head) -> Storing {
        let meta = entry.meta();
        let media_type = meta.content_type.as_deref().unwrap_or_else(|| media_type_of(entry.key().path()));
        let mut caching = head.caching.clone();
        // A 304 need not repeat what has not changed (RFC 9110, 15.4.5).
        if caching.cache_control.is_none() {
            caching.cache_control = meta.cache_control.as_deref().map(Into::into);
        }
        storing(&caching, media_type, self.clock.unix(), &self.settings().config.freshness)
    }
}
