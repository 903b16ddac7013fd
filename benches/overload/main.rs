//! What is asked for grows from nothing to three times what one core can do: what viewers get, and whether the appliance says so.
//!
//! `cargo bench --bench overload`; options: `--seconds=4` for each step, `--range=2048` in KiB, `--fresh=25` (requests of a hundred that come on a
//! connection of their own), `--queue-delay=MS` (another `serve.queue_delay_max`; 0: nothing is refused),
//! `--write` (puts the tables into docs/performance.md), `--test` (a short run).
//!
//! The appliance has one core, viewers and measurement have the other. Viewers ask at random moments (open loop): what is not answered does
//! not keep the next from asking. Once (1x) is what viewers got who asked without a pause, 64 at a time.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]
#![expect(clippy::cast_possible_truncation, reason = "rates and sizes of a bench fit")]

mod crowd;
mod reported;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{fmt::Write as _, sync::Arc, time::Duration};

use crowd::{Crowd, Outcome, Plan};
use reported::{Reported, Watching};
use support::{
    Fallible,
    appliance::{Appliance, Setup},
    client::Client,
    cores, flag, is_smoke, option, report,
    scratch::{Scratch, make_assets},
};

/// Viewers who ask without a pause, to find what the appliance can do.
const TOGETHER: usize = 64;
/// Four seconds of video at 4 Mb/s.
const RANGE: u64 = 2 << 20;
/// Rest before the first step.
const REST: Duration = Duration::from_secs(30);
/// What is offered, in multiples of that.
const STEPS: [f64; 8] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0];
/// Share of its peak that goodput has to keep at 3x.
const GOODPUT_MIN: f64 = 0.9;
/// Multiple of what it was at 1x that the p99 of who is served may be at 3x.
const P99_MAX: f64 = 2.0;

/// One step of the ramp.
struct Step {
    factor: f64,
    outcome: Outcome,
    reported: Reported,
    busy: f64,
    load_busy: f64,
}

impl Step {
    fn goodput(&self) -> f64 {
        self.outcome.answered as f64 / self.outcome.seconds
    }

    fn p99(&self) -> f64 {
        self.outcome.latency.value_at_quantile(0.99) as f64 / 1000.0
    }
}

fn main() -> Fallible<()> {
    let smoke = is_smoke();
    if flag("write") && (smoke || cfg!(debug_assertions)) {
        return Err("a short run, or one of a debug build, makes no figures to write down".into());
    }
    cores::pin_to_load()?;
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    rlimit::increase_nofile_limit(u64::MAX)?;
    println!("{}\n", report::machine());
    let scratch = Scratch::new("overload")?;
    let home = scratch.path();
    let length = if smoke { 4 << 20 } else { 64 << 20 };
    make_assets(&home.join("source"), 1, length)?;
    let mut setup = Setup::new(home, "1 GiB");
    let delay = option("queue-delay").map(|millis| format!("queue_delay_max = \"{millis} ms\"\n")).unwrap_or_default();
    let serve = format!("workers = 1\n{delay}");
    (setup.serve, setup.pinned) = (&serve, true);
    let appliance = setup.start()?;
    let mut client = Client::connect(appliance.http)?;
    for _ in 0..3 {
        client.fetch("/0.mp4", None)?;
    }
    let seconds = option("seconds").unwrap_or(4);
    let plan = Plan {
        address: appliance.http,
        range: option("range").map_or(if smoke { 64 << 10 } else { RANGE }, |kib| kib << 10),
        length,
        rate: None,
        together: TOGETHER,
        fresh_percent: option("fresh").unwrap_or(25),
        connections_max: 4000,
        settle: Duration::from_millis(if smoke { 200 } else { 2000 }),
        time: if smoke { Duration::from_millis(300) } else { Duration::from_secs(seconds) },
        patience: Duration::from_secs(5),
    };
    let steps = ramp(&appliance, &plan, smoke)?;
    let text = show(&plan, &steps);
    println!("\n{text}");
    if flag("write") {
        report::update("docs/performance.md", "overload", &text)?;
    }
    appliance.stop()?;
    let cut: u64 = steps.iter().map(|step| step.outcome.cut).sum();
    if cut > 0 { Err(format!("{cut} responses were cut").into()) } else { Ok(()) }
}

fn ramp(appliance: &Appliance, plan: &Plan, smoke: bool) -> Fallible<Vec<Step>> {
    let found = Crowd::new(plan, &Arc::default())?.run()?;
    let capacity = found.answered as f64 / found.seconds;
    println!("1x: {capacity:.0} requests/s; p99 {} us\n{}", found.latency.value_at_quantile(0.99), Step::HEAD);
    // What is said is an average over ten seconds: that of finding the capacity is not of the first step.
    let rested = std::time::Instant::now();
    while !smoke && rested.elapsed() < REST {
        std::thread::park_timeout(REST.saturating_sub(rested.elapsed()));
    }
    let watching = Watching::start(appliance.admin, plan.range);
    let mut steps = Vec::new();
    for factor in STEPS.into_iter().filter(|factor| !smoke || factor.fract() == 0.0) {
        let plan = Plan { rate: Some(capacity * factor), ..plan.clone() };
        let own = [std::process::id()];
        let (busy, load_busy) = (appliance.cpu_seconds(), cores::cpu_seconds(&own));
        let begun = std::time::Instant::now();
        watching.begin_step();
        let outcome = Crowd::new(&plan, watching.seen())?.run()?;
        let seconds = begun.elapsed().as_secs_f64();
        let step = Step {
            factor,
            outcome,
            reported: watching.end_step()?,
            busy: (appliance.cpu_seconds() - busy) / seconds,
            load_busy: (cores::cpu_seconds(&own) - load_busy) / seconds,
        };
        println!("{}", step.line());
        steps.push(step);
    }
    watching.stop()?;
    Ok(steps)
}

impl Step {
    const HEAD: &'static str = "| offered | requests/s | served/s | Gb/s | refused | lost | p50 ms | p99 ms | p99 ms of refusals | connections | core busy | load busy |\n\
                                |---|---|---|---|---|---|---|---|---|---|---|---|";

    fn line(&self) -> String {
        let outcome = &self.outcome;
        let share = |count: u64| count as f64 * 100.0 / outcome.offered.max(1) as f64;
        format!(
            "| {}x | {:.0} | {:.0} | {:.1} | {:.0} % | {:.1} % | {:.1} | {:.1} | {:.1} | {} | {:.0} % | {:.0} % |",
            self.factor,
            outcome.offered as f64 / outcome.seconds,
            self.goodput(),
            self.reported.seen_gbps,
            share(outcome.refused),
            share(outcome.lost),
            outcome.latency.value_at_quantile(0.5) as f64 / 1000.0,
            self.p99(),
            outcome.refusal.value_at_quantile(0.99) as f64 / 1000.0,
            outcome.connections,
            self.busy * 100.0,
            self.load_busy * 100.0,
        )
    }
}

fn show(plan: &Plan, steps: &[Step]) -> String {
    let peak = steps.iter().map(Step::goodput).fold(0.0, f64::max);
    let at = |factor: f64| steps.iter().find(|step| (step.factor - factor).abs() < 0.01);
    let mut text = format!(
        "Ranges of {} KiB over plain HTTP/1.1 from one core, at random moments; {} of a hundred requests come on a connection of their own, the others on \
         whichever is idle. {:.0} s for each step, after {:.0} s to settle. {}\n\n{}\n",
        plan.range >> 10,
        plan.fresh_percent,
        plan.time.as_secs_f64(),
        plan.settle.as_secs_f64(),
        report::machine(),
        Step::HEAD
    );
    let mut line = |words: std::fmt::Arguments<'_>| text.write_fmt(format_args!("{words}\n")).unwrap_or_default();
    for step in steps {
        line(format_args!("{}", step.line()));
    }
    if let (Some(once), Some(thrice)) = (at(1.0), at(3.0)) {
        let (kept, grown) = (thrice.goodput() / peak, thrice.p99() / once.p99());
        line(format_args!(
            "\nAt 3x goodput is {:.0} % of its peak (the goal: {:.0} %), and the p99 of who is served {grown:.2} times that at 1x (the goal: {P99_MAX}).",
            kept * 100.0,
            GOODPUT_MIN * 100.0
        ));
    }
    line(format_args!("\n{}", Reported::HEAD));
    for step in steps {
        line(format_args!("{}", step.reported.line(step.factor, peak * plan.range as f64 * 8.0)));
    }
    text
}
