import DefaultGuest
import Glibc
import Host
import SystemPackage
import Synchronization
import Testing

/// What concurrent builders count.
private final class Progress: Sendable {
    let builds = Atomic(0)
    let waits = Atomic(0)
    let manifests = Mutex<Set<String?>>([])
}

@Suite struct GuestCacheTests {
    private let files = GuestFiles(kernel: [1, 2, 3], initramfs: [4, 5], manifest: "linux 6.1\n")

    @Test func aBuiltGuestIsFoundAgain() throws {
        let directory = try TemporaryDirectory()
        let cache = GuestCache(directory: directory.path.appending("deep/guests"))
        #expect(cache.guest(.cloud) == nil)
        let built = try cache.guest(.cloud, report: { _ in }) { _ in files }
        #expect(cache.guest(.cloud) == built)
        #expect(cache.guest(.standard) == nil)
        #expect(built.manifest == "linux 6.1\n")
        #expect(try directory.read("deep/guests/cloud/vmlinuz") == "\u{1}\u{2}\u{3}")
        #expect(try directory.read("deep/guests/cloud/initramfs.cpio") == "\u{4}\u{5}")
    }

    @Test func aBuiltGuestIsNotBuiltAgainUnlessAsked() throws {
        let directory = try TemporaryDirectory()
        let cache = GuestCache(directory: directory.path)
        _ = try cache.guest(.cloud, report: { _ in }) { _ in files }
        _ = try cache.guest(.cloud, report: { _ in }) { _ in
            Issue.record("built twice")
            return files
        }
        let newer = GuestFiles(kernel: [9], initramfs: [], manifest: "linux 6.2\n")
        let updated = try cache.guest(.cloud, rebuilding: true, report: { _ in }) { _ in newer }
        #expect(updated.manifest == "linux 6.2\n")
        #expect(try directory.read("cloud/vmlinuz") == "\u{9}")
    }

    @Test func aFailedBuildLeavesNothing() throws {
        let directory = try TemporaryDirectory()
        let cache = GuestCache(directory: directory.path)
        #expect(throws: GuestBuildError("no network")) {
            try cache.guest(.cloud, report: { _ in }) { scratch throws(GuestBuildError) in
                _ = system("mkdir -p '\(scratch)/kernel/boot' && touch '\(scratch)/kernel/boot/vmlinuz'")
                throw GuestBuildError("no network")
            }
        }
        #expect(cache.guest(.cloud) == nil)
        #expect(try directory.shell("find . -mindepth 1 -not -name .lock -not -name output") == "")
    }

    /// What a build that was killed has left is removed by the next one; nothing else is.
    @Test func aKilledBuildIsCleanedUp() throws {
        let directory = try TemporaryDirectory()
        _ = try directory.shell("mkdir -p .build-abcdef/kernel/boot other && touch .build-abcdef/kernel/boot/vmlinuz")
        _ = try directory.shell("ln -s ../other .build-abcdef/link && touch other/file")
        _ = try GuestCache(directory: directory.path).guest(.cloud, report: { _ in }) { _ in
            GuestFiles(kernel: [1], initramfs: [2], manifest: "linux 6.1\n")
        }
        #expect(
            try directory.shell("find . -type f -not -name output | sort").split(separator: "\n") == [
                "./.lock", "./cloud/initramfs.cpio", "./cloud/manifest", "./cloud/vmlinuz", "./other/file"
            ])
        #expect(try directory.shell("ls -d .build-* 2>/dev/null || true") == "")
    }

    @Test func aGuestWithoutManifestIsIncomplete() throws {
        let directory = try TemporaryDirectory()
        _ = try directory.shell("mkdir cloud && touch cloud/vmlinuz cloud/initramfs.cpio")
        #expect(GuestCache(directory: directory.path).guest(.cloud) == nil)
    }

    @Test func anUnwritablePlaceIsNamed() throws {
        let directory = try TemporaryDirectory()
        try directory.write([], to: "file")
        let cache = GuestCache(directory: directory.path.appending("file/guests"))
        let error = #expect(throws: GuestBuildError.self) { try cache.guest(.cloud, report: { _ in }) { _ in files } }
        #expect(error?.description.contains("\(directory.path)/file/guests") == true)
    }

    /// Both ask at once; one builds, the other waits and finds its guest.
    @Test func concurrentBuildersBuildOnce() throws {
        let directory = try TemporaryDirectory()
        let cache = GuestCache(directory: directory.path)
        let files = files
        let progress = Progress()
        let threads = try (0..<2).map { index in
            try HostThread(name: "builder") {
                let report: (String) -> Void = { _ in progress.waits.add(1, ordering: .releasing) }
                let guest = try? cache.guest(.cloud, report: report) { _ in
                    progress.builds.add(1, ordering: .relaxed)
                    // Holds the lock until the other has reported that it waits.
                    while progress.waits.load(ordering: .acquiring) == 0 { usleep(1000) }
                    return GuestFiles(kernel: files.kernel, initramfs: [], manifest: "built by \(index)\n")
                }
                progress.manifests.withLock { _ = $0.insert(guest?.manifest) }
            }
        }
        for thread in threads { thread.join() }
        #expect(progress.manifests.withLock { $0.count } == 1)
        #expect(progress.manifests.withLock { $0.first??.hasPrefix("built by ") } == true)
        #expect(progress.builds.load(ordering: .relaxed) == 1)
        #expect(progress.waits.load(ordering: .relaxed) == 1)
    }
}
