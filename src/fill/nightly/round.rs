//! One round of a night: begins what the plan says by rank, so many at once as may be, until nothing is left or the window closes.
//!
//! What falls to this box comes first. What falls to another box of the site is asked for there, again and again; while every source
//! outside of the site is left alone, nothing is begun that would need one.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};

use super::{LOOK, Nightly, bring::Ended};
use crate::{
    control::Accepted,
    fill::{FillPlan, SourceKind},
};

/// Pause after everything that is left was asked for in vain; doubles while nothing comes.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const ASK_PAUSE_MAX: Duration = Duration::from_secs(16);

/// What is left of a plan.
pub(super) struct Round<'n> {
    night: &'n Nightly,
    accepted: &'n Arc<Accepted>,
    /// Ranks of what falls to this box.
    mine: VecDeque<u32>,
    /// Ranks of what falls to others of the site.
    others: VecDeque<u32>,
    site_is_quiet_since: Instant,
    /// Assets asked for since the last pause that nobody would give now.
    in_vain: usize,
    /// The next pause.
    ask_pause: Duration,
    /// Until when nothing is begun, by the appliance's clock.
    pause_until: Duration,
    /// Whether it was told that every source outside of the site is left alone.
    told_of_rest: bool,
    failed: usize,
}

impl<'n> Round<'n> {
    pub(super) fn new(night: &'n Nightly, accepted: &'n Arc<Accepted>, plan: &FillPlan) -> Self {
        night.wanted_from_now(&accepted.manifest, plan);
        let key = |rank: u32| &accepted.manifest.assets()[rank as usize].key;
        let (mine, others) = plan.fetch.iter().map(|fetch| fetch.rank).partition(|rank| night.falls_to_me(key(*rank)));
        Self {
            night,
            accepted,
            mine,
            others,
            site_is_quiet_since: Instant::now(),
            in_vain: 0,
            ask_pause: ASK_PAUSE,
            pause_until: Duration::ZERO,
            told_of_rest: false,
            failed: 0,
        }
    }

    /// To the end; tells how much could not be had. Ends early when the window closes.
    pub(super) async fn run(mut self) -> usize {
        let night = self.night;
        let mut running = FuturesUnordered::new();
        loop {
            let at_once = night.context.settings().config.nightly.assets_at_once.max(1);
            while running.len() < at_once
                && let Some((rank, site_only)) = self.next()
            {
                running.push(night.bring(self.accepted, rank, site_only));
            }
            if running.is_empty() && self.is_over() {
                return self.failed;
            }
            tokio::select! {
                Some((rank, ended)) = running.next() => self.ended(rank, ended),
                // A pause may be over, a source be back, the window closed.
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn site_wait(&self) -> Duration {
        self.night.context.settings().config.nightly.site_wait
    }

    fn is_over(&self) -> bool {
        !self.night.gate.is_open() || (self.mine.is_empty() && self.others.is_empty())
    }

    /// What to begin now, and whether only the site is asked for it.
    fn next(&mut self) -> Option<(u32, bool)> {
        if !self.night.gate.is_open() || self.night.context.clock.monotonic() < self.pause_until {
            return None;
        }
        let may_ask_outside = self.may_ask_outside();
        if may_ask_outside && let Some(rank) = self.mine.pop_front() {
            return Some((rank, false));
        }
        let rank = *self.others.front()?;
        let patient = self.site_is_quiet_since.elapsed() < self.site_wait();
        // Whoever it fell to may be gone by now.
        let site_only = patient && !self.night.falls_to_me(&self.accepted.manifest.assets()[rank as usize].key);
        if !site_only && !may_ask_outside {
            self.others.rotate_left(1);
            self.asked_in_vain();
            return None;
        }
        self.others.pop_front();
        Some((rank, site_only))
    }

    /// Whether any source outside of the site may be asked now, or there is none at all.
    fn may_ask_outside(&mut self) -> bool {
        let now = Instant::now();
        let settings = self.night.context.settings();
        let mut outside = settings.sources.iter().filter(|source| source.config.kind != SourceKind::Peer);
        let is_none = outside.clone().next().is_none();
        let may = is_none || outside.any(|source| !source.set_aside.is_resting(now));
        match (may, self.told_of_rest) {
            (false, false) => {
                tracing::info!("every source outside of the site is left alone for a while; fill waits for one");
            }
            (true, true) => (self.ask_pause, self.pause_until) = (ASK_PAUSE, Duration::ZERO),
            _ => {}
        }
        self.told_of_rest = !may;
        may
    }

    fn asked_in_vain(&mut self) {
        self.in_vain += 1;
        if self.in_vain > self.mine.len() + self.others.len() {
            self.in_vain = 0;
            let patience = self.site_wait().saturating_sub(self.site_is_quiet_since.elapsed());
            self.pause_until = self.night.context.clock.monotonic() + self.ask_pause.min(patience.max(ASK_PAUSE));
            self.ask_pause = (self.ask_pause * 2).min(ASK_PAUSE_MAX);
        }
    }

    fn ended(&mut self, rank: u32, ended: Ended) {
        match ended {
            Ended::Held => {
                (self.in_vain, self.ask_pause) = (0, ASK_PAUSE);
                self.site_is_quiet_since = Instant::now();
            }
            Ended::Paused => {}
            Ended::Failed(_) => self.failed += 1,
            Ended::Waiting => {
                self.others.push_back(rank);
                self.asked_in_vain();
            }
            Ended::Later => {
                self.mine.push_back(rank);
                self.asked_in_vain();
            }
        }
    }
}
