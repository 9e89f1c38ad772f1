import Glibc

/// Runs `bodies` on threads of their own, all at the same time, and returns when all have ended.
///
/// Tasks would not do: there are no more of their threads than processors, and bodies wait for each other.
func runThreads(_ bodies: [@Sendable () -> Void]) {
    final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
    let threads = bodies.map { body in
        var thread = pthread_t()
        let argument = Unmanaged.passRetained(Body(body)).toOpaque()
        let status = pthread_create(
            &thread, nil,
            { argument in
                // SAFETY: the creator passed one reference, which is taken here.
                Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().run()
                return nil
            }, argument)
        precondition(status == 0, "pthread_create: error \(status)")
        return thread
    }
    for thread in threads { pthread_join(thread, nil) }
}
