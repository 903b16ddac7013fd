//! When the fill window is open: local times of day, several a week, right on days of 23 and 25 hours. Pure.

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Weekday},
    tz::TimeZone,
};

use super::config::{Day, TimeOfDay, Window, Zone};
use crate::asset::{BitRate, UnixTime};

/// The fill windows of a box.
#[derive(Clone, Debug)]
pub struct Windows {
    zone: TimeZone,
    windows: Vec<Window>,
}

/// How it stands with the windows at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowState {
    /// One is open.
    Open {
        /// When it closes.
        until: UnixTime,
        /// What may come in while it is.
        rate: BitRate,
    },
    /// None is.
    Closed {
        /// When the next one opens; `None` where there is none.
        next: Option<UnixTime>,
    },
}

/// How far ahead the next window is looked for: each day of the week, whatever today is, and a day that a zone left out.
const DAYS_AHEAD: i64 = 9;

impl Windows {
    /// Windows in the times of a zone.
    pub fn new(zone: Zone, windows: Vec<Window>) -> Self {
        Self { zone: zone.0, windows }
    }

    /// How it stands at `now`. Of several that are open, the one that lets most in counts.
    pub fn at(&self, now: UnixTime) -> WindowState {
        let Ok(time) = Timestamp::from_second(now.0.cast_signed()) else { return WindowState::Closed { next: None } };
        let today = time.to_zoned(self.zone.clone()).date();
        let (mut open, mut next): (Option<(BitRate, UnixTime)>, Option<UnixTime>) = (None, None);
        // Yesterday's may last until today.
        for ahead in -1..DAYS_AHEAD {
            let Ok(day) = today.checked_add(ahead.days()) else { continue };
            for window in self.windows.iter().filter(|window| window.days.contains(&of_week(day.weekday()))) {
                let Some((from, to)) = self.on(day, window) else { continue };
                if from <= now && now < to {
                    open = open.max(Some((window.rate, to)));
                } else if now < from {
                    next = Some(next.map_or(from, |next| next.min(from)));
                }
            }
        }
        match open {
            Some((rate, until)) => WindowState::Open { until, rate },
            None => WindowState::Closed { next },
        }
    }

    /// Begin and end of a window that opens on `day`. A time that the day does not have is taken as much later as the clocks were put
    /// on; of one that it has twice, the first.
    fn on(&self, day: Date, window: &Window) -> Option<(UnixTime, UnixTime)> {
        let last = if window.to <= window.from { day.tomorrow().ok()? } else { day };
        let (from, to) = (self.time(day, window.from)?, self.time(last, window.to)?);
        (from < to).then_some((from, to))
    }

    fn time(&self, day: Date, time: TimeOfDay) -> Option<UnixTime> {
        let (day, hour) = if time.hour() == 24 { (day.tomorrow().ok()?, 0) } else { (day, time.hour()) };
        let zoned = day.at(hour, time.minute(), 0, 0).to_zoned(self.zone.clone()).ok()?;
        u64::try_from(zoned.timestamp().as_second()).ok().map(UnixTime)
    }
}

fn of_week(day: Weekday) -> Day {
    match day {
        Weekday::Monday => Day::Mon,
        Weekday::Tuesday => Day::Tue,
        Weekday::Wednesday => Day::Wed,
        Weekday::Thursday => Day::Thu,
        Weekday::Friday => Day::Fri,
        Weekday::Saturday => Day::Sat,
        Weekday::Sunday => Day::Sun,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn windows(zone_name: &str, windows: &[(&[Day], &str, &str, u64)]) -> Windows {
        let window = |(days, from, to, rate): &(&[Day], &str, &str, u64)| Window {
            days: days.to_vec(),
            from: from.parse().expect("a time"),
            to: to.parse().expect("a time"),
            rate: BitRate(*rate),
        };
        Windows::new(zone_name.parse().expect("a zone"), windows.iter().map(window).collect())
    }

    fn at(text: &str) -> UnixTime {
        let time: Timestamp = text.parse().expect("a time");
        UnixTime(time.as_second().cast_unsigned())
    }

    fn open(until: &str, rate: u64) -> WindowState {
        WindowState::Open { until: at(until), rate: BitRate(rate) }
    }

    fn closed(next: &str) -> WindowState {
        WindowState::Closed { next: Some(at(next)) }
    }

    #[test]
    fn an_ordinary_day_has_its_window() {
        let nightly = windows("Europe/Berlin", &[(&Day::ALL, "02:00", "14:00", 5)]);
        assert_eq!(nightly.at(at("2026-01-15T00:59:59Z")), closed("2026-01-15T01:00:00Z"));
        assert_eq!(nightly.at(at("2026-01-15T01:00:00Z")), open("2026-01-15T13:00:00Z", 5));
        assert_eq!(nightly.at(at("2026-01-15T12:59:59Z")), open("2026-01-15T13:00:00Z", 5));
        assert_eq!(nightly.at(at("2026-01-15T13:00:00Z")), closed("2026-01-16T01:00:00Z"));
    }

    #[test]
    fn days_of_23_and_25_hours_have_windows_of_11_and_13() {
        let nightly = windows("Europe/Berlin", &[(&Day::ALL, "02:00", "14:00", 5)]);
        // At 02:00 the clocks are put on to 03:00.
        assert_eq!(nightly.at(at("2026-03-29T00:59:59Z")), closed("2026-03-29T01:00:00Z"));
        assert_eq!(nightly.at(at("2026-03-29T01:00:00Z")), open("2026-03-29T12:00:00Z", 5));
        assert_eq!(nightly.at(at("2026-03-29T12:00:00Z")), closed("2026-03-30T00:00:00Z"));
        // At 03:00 the clocks are put back to 02:00: the window opens at the first 02:00.
        assert_eq!(nightly.at(at("2026-10-24T23:59:59Z")), closed("2026-10-25T00:00:00Z"));
        assert_eq!(nightly.at(at("2026-10-25T00:00:00Z")), open("2026-10-25T13:00:00Z", 5));
        assert_eq!(nightly.at(at("2026-10-25T13:00:00Z")), closed("2026-10-26T01:00:00Z"));
    }

    #[test]
    fn a_window_that_a_day_leaves_out_is_moved_on_and_one_that_comes_twice_is_one() {
        let early = windows("America/New_York", &[(&Day::ALL, "02:15", "02:45", 5)]);
        assert_eq!(early.at(at("2026-03-08T06:59:59Z")), closed("2026-03-08T07:15:00Z"), "03:15 of the new time");
        assert_eq!(early.at(at("2026-03-08T07:15:00Z")), open("2026-03-08T07:45:00Z", 5));
        let twice = windows("America/New_York", &[(&Day::ALL, "01:15", "01:45", 5)]);
        assert_eq!(twice.at(at("2026-11-01T05:15:00Z")), open("2026-11-01T05:45:00Z", 5));
        assert_eq!(twice.at(at("2026-11-01T06:15:00Z")), closed("2026-11-02T06:15:00Z"), "not once more");
    }

    #[test]
    fn windows_pass_midnight_and_have_days_and_the_fastest_counts() {
        let spec: &[(&[Day], &str, &str, u64)] =
            &[(&[Day::Fri], "22:00", "06:00", 5), (&[Day::Sat, Day::Sun], "00:00", "24:00", 3)];
        let nightly = windows("UTC", spec);
        // 2026-01-16 is a Friday.
        assert_eq!(nightly.at(at("2026-01-16T21:59:59Z")), closed("2026-01-16T22:00:00Z"));
        assert_eq!(nightly.at(at("2026-01-17T05:00:00Z")), open("2026-01-17T06:00:00Z", 5));
        assert_eq!(nightly.at(at("2026-01-17T06:00:00Z")), open("2026-01-18T00:00:00Z", 3));
        assert_eq!(nightly.at(at("2026-01-19T00:00:00Z")), closed("2026-01-23T22:00:00Z"));
        assert_eq!(windows("UTC", &[]).at(at("2026-01-17T06:00:00Z")), WindowState::Closed { next: None });
    }
}
