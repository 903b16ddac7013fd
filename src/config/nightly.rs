//! The fill by manifest: what stands in the file, and whether it goes together.

use toml::de::DeValue;

use super::{
    Config,
    reader::{Reading, Section, Value, one_of, text},
};
use crate::{
    asset::ByteCount,
    fill::nightly::{self, Day, TimeOfDay, Window, Zone},
};

impl Value for Day {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        one_of(value, &std::array::from_fn::<_, 7, _>(|at| (names[at], Self::ALL[at])))
    }
}

impl Value for TimeOfDay {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let example = "\"02:00\"";
        text(value, example)?.parse().map_err(|()| format!("write hours and minutes, for example {example}"))
    }
}

impl Value for Zone {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let name = text(value, "\"Europe/Berlin\"")?;
        name.parse()
            .map_err(|()| format!("'{name}' is no time zone; write \"system\", or for example \"Europe/Berlin\""))
    }
}

pub(super) fn read(mut section: Section<'_, '_>, into: &mut nightly::Config) {
    section.read("time_zone", &mut into.time_zone);
    section.read("rate_outside", &mut into.rate_outside);
    section.read("assets_at_once", &mut into.assets_at_once);
    section.read("gives_way", &mut into.gives_way);
    section.read("link", &mut into.link);
    section.read("cold_wait_max", &mut into.cold_wait_max);
    section.read("site_wait", &mut into.site_wait);
    section.read("retry_after", &mut into.retry_after);
    section.read("plan_interval", &mut into.plan_interval);
    section.read("capacity_percent", &mut into.rules.capacity_percent);
    section.read("pinned_percent", &mut into.rules.pinned_percent);
    section.read("stability_percent", &mut into.rules.stability_percent);
    section.read("watched_within", &mut into.rules.watched_within);
    section.read("log", &mut into.log);
    section.read("log_size_max", &mut into.log_size_max);
    section.finish();
}

/// The windows of a file take the place of the default one.
pub(super) fn read_windows(sections: Vec<Section<'_, '_>>, into: &mut nightly::Config) {
    if !sections.is_empty() {
        into.windows.clear();
    }
    for mut section in sections {
        let mut window = Window::default();
        section.read("days", &mut window.days);
        section.read("from", &mut window.from);
        section.read("to", &mut window.to);
        section.read("rate", &mut window.rate);
        section.finish();
        into.windows.push(window);
    }
}

pub(super) fn check(config: &Config, reading: &Reading) {
    let nightly = &config.fill.nightly;
    let fault = |wrong: bool, key: &str, message: String, help: &str| {
        if wrong {
            reading.add(reading.span(key), message, help);
        }
    };
    let (percent, low) = (nightly.rules.capacity_percent, config.catalog.watermark_low_percent);
    fault(
        percent == 0 || percent > low,
        "fill.nightly.capacity_percent",
        format!("manifests may fill {percent} percent of a volume, and eviction goes down to {low} percent"),
        "from 1 to catalog.watermark_low_percent, or eviction would undo what is filled",
    );
    let pinned = nightly.rules.pinned_percent;
    fault(
        pinned > percent,
        "fill.nightly.pinned_percent",
        format!("{pinned} percent may be pinned of the {percent} percent that manifests may fill"),
        "at most fill.nightly.capacity_percent",
    );
    fault(
        nightly.rules.stability_percent > 50,
        "fill.nightly.stability_percent",
        format!("an asset that is held stands ahead by {} percent", nightly.rules.stability_percent),
        "0 to 50",
    );
    fault(
        nightly.assets_at_once == 0,
        "fill.nightly.assets_at_once",
        "fill.nightly.assets_at_once is 0, so that nothing would ever be filled".into(),
        "at least 1",
    );
    fault(
        nightly.log_size_max < ByteCount(64 << 10),
        "fill.nightly.log_size_max",
        format!("a log of {}", nightly.log_size_max),
        "at least 64 KiB",
    );
    for (number, window) in nightly.windows.iter().enumerate() {
        let key = |name: &str| format!("fill.window[{number}].{name}");
        fault(
            window.rate.0 < 80_000,
            &key("rate"),
            format!("a window lets {} in", window.rate),
            "at least \"80 kbps\"; leave the window out if nothing is to come",
        );
        fault(
            window.days.is_empty(),
            &key("days"),
            "a window opens on no day".into(),
            "for example [\"sat\", \"sun\"]",
        );
    }
}
