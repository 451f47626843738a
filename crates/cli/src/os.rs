//! What only the operating system knows. Elsewhere than on Unix, the plain answer that does no harm.

use std::time::SystemTime;

/// The width of the terminal behind standard output in columns, 80 where there is none. `COLUMNS` overrides.
pub fn terminal_width() -> usize {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .filter(|columns| *columns > 0)
        .or_else(platform::terminal_width)
        .unwrap_or(80)
}

/// Hours, minutes, seconds and milliseconds on the wall clock here; UTC where the zone isn't known.
pub fn time_of_day(time: SystemTime) -> (u8, u8, u8, u16) {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs();
    let millis = u16::try_from(since.subsec_millis()).unwrap_or_default();
    let (hour, minute, second) = platform::local_time(seconds).unwrap_or_else(|| {
        let part = |value: u64| u8::try_from(value).unwrap_or_default();
        (
            part(seconds / 3600 % 24),
            part(seconds / 60 % 60),
            part(seconds % 60),
        )
    });
    (hour, minute, second, millis)
}

/// A time on the wall clock here, written by a pattern of `strftime`. `None` where that isn't known, or the result is empty
/// or longer than 4095 bytes.
pub fn strftime(pattern: &str, time: SystemTime) -> Option<String> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    platform::strftime(pattern, since.as_secs())
}

#[cfg(unix)]
pub use platform::{in_foreground_of_a_terminal, send_signal, user_id};

/// Lets a command end when this process does, however that ends (Linux; elsewhere by the end of its standard input).
///
/// The thread that starts it must live as long as the process.
pub fn end_with_us(command: &mut tokio::process::Command) {
    #[cfg(target_os = "linux")]
    platform::end_with_us(command);
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

#[cfg(unix)]
mod platform {
    use std::os::fd::AsRawFd as _;

    /// The user whose rights this process has.
    #[expect(unsafe_code, reason = "std doesn't say")]
    pub fn user_id() -> u32 {
        // SAFETY: takes nothing, and can't fail.
        unsafe { libc::geteuid() }
    }

    /// Sends a signal to a process. Says whether there was one to take it.
    #[expect(unsafe_code, reason = "std sends no signal but SIGKILL")]
    pub fn send_signal(pid: u32, signal: i32) -> bool {
        let Ok(pid) = libc::pid_t::try_from(pid) else {
            return false;
        };
        // SAFETY: takes no pointers; a wrong pid or signal is an error it returns.
        unsafe { libc::kill(pid, signal) == 0 }
    }

    /// Whether the terminal sends its Ctrl-C and Ctrl-\ to this process group, and so also to our children.
    #[expect(unsafe_code, reason = "std knows no process groups")]
    pub fn in_foreground_of_a_terminal() -> bool {
        let Ok(terminal) = std::fs::File::open("/dev/tty") else {
            return false;
        };
        // SAFETY: the descriptor is open for as long as `terminal` lives.
        let foreground = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
        // SAFETY: takes nothing, and always succeeds.
        foreground == unsafe { libc::getpgrp() }
    }

    #[cfg(target_os = "linux")]
    #[expect(unsafe_code, reason = "std ends no children with their parent")]
    pub(super) fn end_with_us(command: &mut tokio::process::Command) {
        let parent = std::process::id();
        let ask = move || {
            // SAFETY: takes no pointers; an error is returned.
            if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have ended before it was asked.
            if std::os::unix::process::parent_id() == parent {
                Ok(())
            } else {
                Err(std::io::Error::from_raw_os_error(libc::ESRCH))
            }
        };
        // SAFETY: between fork and exec, `ask` makes two system calls, and allocates nothing.
        unsafe {
            command.pre_exec(ask);
        }
    }

    #[expect(unsafe_code, reason = "std does not ask for the size of a terminal")]
    pub(super) fn terminal_width() -> Option<usize> {
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: TIOCGWINSZ fills in a winsize, and `size` is one.
        let status = unsafe {
            libc::ioctl(
                libc::STDOUT_FILENO,
                libc::TIOCGWINSZ,
                std::ptr::from_mut(&mut size),
            )
        };
        (status == 0 && size.ws_col > 0).then(|| usize::from(size.ws_col))
    }

    #[expect(unsafe_code, reason = "std knows no time zones")]
    fn broken_down(seconds: u64) -> Option<libc::tm> {
        let seconds = libc::time_t::try_from(seconds).ok()?;
        // SAFETY: a `tm` is integers and a pointer that may be null.
        let mut tm: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live values of the right types; null means failure.
        let filled = unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) };
        (!filled.is_null()).then_some(tm)
    }

    pub(super) fn local_time(seconds: u64) -> Option<(u8, u8, u8)> {
        let tm = broken_down(seconds)?;
        let part = |value: libc::c_int| u8::try_from(value).ok();
        Some((part(tm.tm_hour)?, part(tm.tm_min)?, part(tm.tm_sec)?))
    }

    #[expect(unsafe_code, reason = "std writes no dates")]
    pub(super) fn strftime(pattern: &str, seconds: u64) -> Option<String> {
        let tm = broken_down(seconds)?;
        let pattern = std::ffi::CString::new(pattern).ok()?;
        let mut out = vec![0u8; 4096];
        // SAFETY: the pattern ends with a zero, `tm` was filled in by localtime_r, and no more than `out` holds is written.
        let written = unsafe {
            libc::strftime(
                out.as_mut_ptr().cast(),
                out.len(),
                pattern.as_ptr(),
                &raw const tm,
            )
        };
        out.truncate(written);
        String::from_utf8(out).ok().filter(|text| !text.is_empty())
    }
}

#[cfg(not(unix))]
mod platform {
    pub(super) fn terminal_width() -> Option<usize> {
        None
    }

    pub(super) fn local_time(_seconds: u64) -> Option<(u8, u8, u8)> {
        None
    }

    pub(super) fn strftime(_pattern: &str, _seconds: u64) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_time_of_day_has_the_milliseconds() {
        let (hour, minute, second, millis) =
            time_of_day(SystemTime::UNIX_EPOCH + Duration::from_millis(1_234));
        assert!(hour < 24 && minute < 60);
        assert_eq!((second, millis), (1, 234));
    }

    #[cfg(unix)]
    #[test]
    fn names_may_have_the_date() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert_eq!(strftime("a/%Y%%.mitm", noon).unwrap(), "a/2001%.mitm");
        assert_eq!(strftime(&"%A".repeat(4096), noon), None);
    }
}
