//! What differs by platform.

/// Lowers the priority of the calling thread: a worker that has something to do gets its core at once, and not when the
/// store has finished a piece of its own work. Where the platform has no priority for a single thread, nothing changes.
pub(crate) fn let_others_go_first() {
    #[cfg(target_os = "linux")]
    {
        // On Linux, 0 is the calling thread, not its process. Where it is refused, all works as well.
        // SAFETY: it takes numbers only.
        #[expect(unsafe_code, reason = "std can't set the priority of a thread")]
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    }
}

/// A tenth of what a worker gets, where both want a core for themselves.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 10;
