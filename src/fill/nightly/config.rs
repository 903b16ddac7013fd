//! What the operator decides about the fill by manifest.

use std::{path::PathBuf, str::FromStr, time::Duration};

use jiff::tz::TimeZone;

use super::super::plan::Rules;
use crate::asset::{BitRate, ByteCount};

/// When, how fast and how much is filled ahead of demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The zone whose times the windows are in.
    pub time_zone: Zone,
    /// When it may fill.
    pub windows: Vec<Window>,
    /// What may come in while no window is open; zero: nothing.
    pub rate_outside: BitRate,
    /// Assets in work at once.
    pub assets_at_once: usize,
    /// Whether its threads have a core only while nobody else wants it.
    pub gives_way: bool,
    /// Bits per second that the box can send and receive together; zero: not known. What viewers take of it fill leaves alone.
    pub link: BitRate,
    /// Average wait for cold bytes above which fill slows down: viewers need the disk.
    pub cold_wait_max: Duration,
    /// How long a box waits for the box of its site that an asset falls to, before it fetches it from outside itself.
    pub site_wait: Duration,
    /// How long an asset that could not be had is left alone.
    pub retry_after: Duration,
    /// How often what is held is compared with the manifest while nothing is left to do.
    pub plan_interval: Duration,
    /// How plans are made.
    pub rules: Rules,
    /// File of the event log; none: no log.
    pub log: Option<PathBuf>,
    /// Bytes of the log at which it is put aside, and the one put aside before is dropped.
    pub log_size_max: ByteCount,
}

/// A time in which it may fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Days on which it opens.
    pub days: Vec<Day>,
    /// When it opens.
    pub from: TimeOfDay,
    /// When it closes: on the next day, where that is no later than `from`.
    pub to: TimeOfDay,
    /// What may come in while it is open.
    pub rate: BitRate,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

/// A local time, to the minute; 24:00 is the end of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay(u16);

impl Day {
    /// Every day.
    pub const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];
}

impl FromStr for Day {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let at = names.iter().position(|name| *name == text).ok_or(())?;
        Ok(Self::ALL[at])
    }
}

impl TimeOfDay {
    /// Whole hours, 0 to 24.
    pub fn hour(self) -> i8 {
        i8::try_from(self.0 / 60).unwrap_or(24)
    }

    /// Minutes of the hour.
    pub fn minute(self) -> i8 {
        i8::try_from(self.0 % 60).unwrap_or(0)
    }
}

impl FromStr for TimeOfDay {
    type Err = ();

    /// "02:00"; always two digits each.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (hours, minutes) = text.split_once(':').ok_or(())?;
        let digits = |part: &str| {
            let is_number = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            if is_number { part.parse::<u16>().map_err(drop) } else { Err(()) }
        };
        let time = Self(digits(hours)? * 60 + digits(minutes)?);
        (time.0 % 60 == time.0 - digits(hours)? * 60 && time.0 <= 24 * 60).then_some(time).ok_or(())
    }
}

/// A time zone. Read when the configuration is: later, its files may be out of reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(pub(super) TimeZone);

impl Zone {
    /// The machine's; UTC where it says none.
    pub fn system() -> Self {
        Self(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }
}

impl FromStr for Zone {
    type Err = ();

    /// "Europe/Berlin"; "system" for the machine's.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "system" { Ok(Self::system()) } else { TimeZone::get(text).map(Self).map_err(drop) }
    }
}

impl Default for Window {
    fn default() -> Self {
        Self { days: Day::ALL.to_vec(), from: TimeOfDay(2 * 60), to: TimeOfDay(14 * 60), rate: BitRate(1_200_000_000) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            time_zone: Zone::system(),
            windows: vec![Window::default()],
            rate_outside: BitRate(0),
            assets_at_once: 4,
            gives_way: true,
            link: BitRate(0),
            cold_wait_max: Duration::from_millis(50),
            site_wait: Duration::from_secs(300),
            retry_after: Duration::from_secs(60),
            plan_interval: Duration::from_secs(600),
            rules: Rules::default(),
            log: None,
            log_size_max: ByteCount(64 << 20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_day_has_two_digits_each() {
        let time = |text: &str| text.parse::<TimeOfDay>().map(|time| (time.hour(), time.minute()));
        assert_eq!((time("02:05"), time("23:59"), time("24:00")), (Ok((2, 5)), Ok((23, 59)), Ok((24, 0))));
        for bad in ["", "2:00", "02:60", "24:01", "25:00", "02-00", "+2:00", "02:00:00"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn zones_have_names() {
        for good in ["Europe/Berlin", "system", "UTC"] {
            assert!(good.parse::<Zone>().is_ok(), "{good}");
        }
        assert!("Europe/Nowhere".parse::<Zone>().is_err());
    }
}
