//! Whether the wall clock was moved: compares it with the monotonic one, which nobody can.

use std::time::Duration;

/// The larger moves of late.
#[derive(Debug, Default)]
pub(super) struct Skew {
    last: Option<(Duration, Duration)>,
    /// When, by the monotonic clock, it was moved, and by how many seconds.
    moved: Option<(Duration, f64)>,
}

/// The largest move of late counts, and a smaller one does not replace it.
impl Skew {
    /// Looks at both clocks. Gives the largest move within `memory` that was more than `least`, in seconds; forward is positive.
    pub(super) fn look(&mut self, (wall, monotonic): (Duration, Duration), least: Duration, memory: Duration) -> f64 {
        if let Some((wall_before, before)) = self.last.replace((wall, monotonic)) {
            let went = wall.as_secs_f64() - wall_before.as_secs_f64();
            let by = went - monotonic.saturating_sub(before).as_secs_f64();
            let largest = self.moved.map_or(0.0, |(_, by)| by.abs());
            if by.abs() > least.as_secs_f64() && by.abs() >= largest {
                self.moved = Some((monotonic, by));
            }
        }
        self.moved = self.moved.filter(|(when, _)| monotonic.saturating_sub(*when) <= memory);
        self.moved.map_or(0.0, |(_, by)| by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_secs(2);
    const MEMORY: Duration = Duration::from_secs(300);

    fn looks(times: &[(u64, u64)]) -> Vec<f64> {
        let mut skew = Skew::default();
        times
            .iter()
            .map(|(wall, monotonic)| {
                skew.look((Duration::from_secs(*wall), Duration::from_secs(*monotonic)), LEAST, MEMORY)
            })
            .collect()
    }

    #[test]
    fn a_move_is_told_for_its_time() {
        assert_eq!(looks(&[(1000, 10), (1001, 11), (4602, 12), (4603, 13)]), [0.0, 0.0, 3600.0, 3600.0]);
        assert_eq!(looks(&[(1000, 10), (401, 11), (701, 311), (702, 312)]), [0.0, -600.0, -600.0, 0.0]);
    }

    #[test]
    fn a_late_look_and_a_small_correction_are_none() {
        assert_eq!(looks(&[(1000, 10), (1060, 70), (1063, 71), (1065, 72)]), [0.0; 4]);
    }

    #[test]
    fn the_larger_of_two_is_told() {
        assert_eq!(looks(&[(1000, 0), (1101, 1), (1112, 2), (2113, 3)]), [0.0, 100.0, 100.0, 1000.0]);
    }
}
