import DefaultGuest
import Glibc
import TestSupport
import Testing

extension EndToEnd {
    /// `martlet guest build` and `make run`, where the guests are there already.
    @Suite(.needsGuests) struct GuestBuilds {
        /// A command that has no network: not even the loopback device is up.
        private static let withoutNetwork = ["/usr/bin/unshare", "--user", "--map-root-user", "--net"]
        private static let canUnshare: Bool = {
            guard let child = try? ChildProcess(withoutNetwork + ["/bin/true"]) else { return false }
            return child.wait() == .exited(0)
        }()

        /// A home with a copy of the cloud guest in its cache.
        private func home() throws -> ScratchDirectory {
            let home = ScratchDirectory()
            let guest = try #require(MartletCommand.guest(.cloud))
            let source = guest.kernel.removingLastComponent().string
            let target = "\(home.path)/.cache/martlet/guests"
            let child = try ChildProcess([
                "/bin/sh", "-c", "mkdir -p \"$1\" && cp -R \"$0\" \"$1\"", source, target
            ])
            #expect(child.wait() == .exited(0), "\(child.errorText)")
            return home
        }

        private func start(
            _ arguments: [String], _ home: ScratchDirectory, prefix: [String] = []
        ) throws -> ChildProcess {
            let command = try #require(MartletCommand.path)
            return try ChildProcess(
                prefix + [command] + arguments, environment: ["HOME": home.path, "XDG_CACHE_HOME": nil])
        }

        /// The second time nothing is downloaded, and what is there boots.
        @Test(.enabled(if: GuestBuilds.canUnshare, "needs unshare and unprivileged user namespaces"))
        func theSecondTimeNeedsNoNetwork() throws {
            let home = try home()
            for arguments in [["guest", "build"], ["guest", "list"]] {
                let child = try start(arguments, home, prefix: Self.withoutNetwork)
                #expect(child.wait() == .exited(0), Boot.account(child))
                #expect((child.outputText + child.errorText).contains(home.path), Boot.account(child))
            }
            let child = try start(["run", "--append", "martlet.batch"], home, prefix: Self.withoutNetwork)
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.output.occurrences(of: "\nLinux martlet ") == 1, Boot.account(child))
        }

        /// Without a network the first time fails in one piece: nothing half-built is left, and the message says what to do.
        @Test(.enabled(if: GuestBuilds.canUnshare, "needs unshare and unprivileged user namespaces"))
        func theFirstTimeNeedsANetwork() throws {
            let home = ScratchDirectory()
            let child = try start(["guest", "build"], home, prefix: Self.withoutNetwork)
            #expect(child.wait() == .exited(1), Boot.account(child))
            #expect(child.output.isEmpty)
            #expect(child.errorText.contains("martlet run --kernel FILE"), Boot.account(child))
            let left = try ChildProcess(["/usr/bin/find", home.path, "-type", "f", "-size", "+0"])
            #expect(left.wait() == .exited(0) && left.outputText == "", "\(left.outputText)")
        }

        /// Two at once do not disturb each other.
        @Test func twoAtOnce() throws {
            let home = try home()
            let children = try (0..<2).map { _ in try start(["guest", "build"], home) }
            for child in children {
                #expect(child.wait() == .exited(0), Boot.account(child))
                #expect(child.errorText.contains("guest 'cloud' is ready"), Boot.account(child))
            }
        }

        /// Ctrl-C of one that waits, or builds, ends it.
        @Test func oneThatWaitsCanBeInterrupted() throws {
            let home = ScratchDirectory()
            let folder = "\(home.path)/.cache/martlet/guests"
            let holder = try ChildProcess([
                "/bin/sh", "-c", "mkdir -p \"$0\" && exec flock \"$0/.lock\" sh -c 'echo held; sleep 1000'", folder
            ])
            try #require(holder.waitForOutput(containing: "held"), Boot.account(holder))
            let child = try start(["guest", "build"], home)
            while child.errors.end(of: "waiting for another build") == nil {
                try #require(child.wait(patienceSeconds: 0.05) == .running, Boot.account(child))
            }
            child.signal(SIGINT)
            #expect(child.wait() == .signalled(SIGINT), Boot.account(child))
        }
    }
}
