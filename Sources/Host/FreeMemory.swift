import CHost

/// Memory that the process has freed.
public enum FreeMemory {
    /// Gives it back to the system, after work that needed much more than what follows. The C function is `malloc_trim`.
    public static func release() { martlet_release_free_memory() }
}
