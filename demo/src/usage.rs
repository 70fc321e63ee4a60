//! What processes cost: CPU time and peak memory, as the kernel counts them.

use crate::stats::field;

/// Ticks per second of the times in `/proc/PID/stat`: a constant of the kernel's interface.
const USER_HZ: f64 = 100.0;
/// What makes the kernel forget a process's peak memory when it is written to `clear_refs`.
const RESET_PEAK: &str = "5";

/// What some processes cost during a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time in user space and in the kernel, in seconds.
    pub cpu_seconds: f64,
    /// Sum of the processes' peak resident memory, in bytes.
    pub peak_bytes: u64,
}

impl Usage {
    /// Both together: their times, and the higher of their peaks.
    pub fn and(self, other: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            peak_bytes: self.peak_bytes.max(other.peak_bytes),
        }
    }
}

/// Measures some processes from its making on.
pub struct Meter<'a> {
    pids: &'a [u32],
    before: f64,
}

impl<'a> Meter<'a> {
    /// Begins to measure.
    pub fn start(pids: &'a [u32]) -> Self {
        for pid in pids {
            // Where this is not permitted the peak is that of the process's whole life, which is no less.
            let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), RESET_PEAK);
        }
        Self {
            pids,
            before: cpu_seconds(pids),
        }
    }

    /// What they cost since.
    pub fn stop(self) -> Usage {
        let peaks = self.pids.iter().map(|pid| memory(*pid).0);
        Usage {
            cpu_seconds: cpu_seconds(self.pids) - self.before,
            peak_bytes: peaks.sum(),
        }
    }
}

/// Peak and present resident memory of a process, in bytes.
pub fn memory(pid: u32) -> (u64, u64) {
    let status = format!("/proc/{pid}/status");
    (
        field(&status, "VmHWM:") * 1024,
        field(&status, "VmRSS:") * 1024,
    )
}

fn cpu_seconds(pids: &[u32]) -> f64 {
    let stats = pids.iter().filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(&stat)
    });
    stats.sum::<u64>() as f64 / USER_HZ
}

/// Ticks of a process and of its children that have ended: the fields 14 to 17 of proc_pid_stat(5).
fn parse_stat(stat: &str) -> Option<u64> {
    // The name stands in parentheses and may hold blanks and parentheses itself.
    let (_, behind_name) = stat.rsplit_once(')')?;
    let times: Vec<u64> = behind_name
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(|ticks| ticks.parse().ok())
        .collect::<Option<_>>()?;
    (times.len() == 4).then(|| times.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let rest = "S 1 2 3 0 -1 4194560 100 200 0 0 11 22 3 4 20 0 7 0 99 1000 50";
        for name in ["weir", "a b", "x) (y"] {
            assert_eq!(parse_stat(&format!("42 ({name}) {rest}")), Some(40));
        }
        assert_eq!(parse_stat("42 (weir) S 1 2"), None);
    }

    #[test]
    fn a_busy_process_uses_cpu_time_and_memory() {
        let own = [std::process::id()];
        let meter = Meter::start(&own);
        let block = vec![1_u8; 32 << 20];
        let mut sum = 0_u64;
        for round in 0..40_u64 {
            sum = sum.wrapping_add(block.iter().map(|byte| u64::from(*byte) ^ round).sum());
        }
        let usage = meter.stop();
        assert!(sum > 0);
        assert!(usage.peak_bytes >= 32 << 20, "{usage:?}");
    }
}
