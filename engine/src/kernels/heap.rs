//! Memory that was freed, on its way back to the system.

/// Gives the system back what the allocator keeps of freed memory. Loading frees megabytes in small pieces, which a thread's
/// arena would keep for as long as the process lives.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: glibc has the function since 2.0 (malloc_trim(3)); any thread may call it, and no allocation changes.
        unsafe { malloc_trim(0) };
    }
}
