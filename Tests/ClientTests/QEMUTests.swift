import Glibc
import TestSupport
import Testing

/// What Debian's QEMU, unmodified, does with Martlet's KVM.
@Suite(.serialized, .timeLimit(.minutes(20)), .enabled(if: QEMU.isAvailable, QEMU.missing))
struct QEMUTests {
    /// A machine that QEMU offers.
    struct Board: Sendable, CustomTestStringConvertible {
        var machine: String
        var processors = 1
        var cpu: String?

        var testDescription: String { "\(machine), \(processors) processors, \(cpu ?? "default") model" }
    }

    /// With the interrupt controllers in the core, divided, and in QEMU. There QEMU 7.2 of Debian starts no second processor:
    /// its fix for startup interrupts during system management mode leaves them pending.
    static let boards = [
        Board(machine: "q35", processors: 4, cpu: "host"), Board(machine: "q35"),
        Board(machine: "q35,kernel-irqchip=split", processors: 2, cpu: "max"),
        Board(machine: "q35,kernel-irqchip=off", cpu: "host"), Board(machine: "pc", processors: 2, cpu: "max"),
        Board(machine: "pc,kernel-irqchip=split", processors: 4), Board(machine: "pc,kernel-irqchip=off"),
        Board(machine: "microvm", processors: 2, cpu: "host"),
        Board(machine: "microvm,kernel-irqchip=split", processors: 4, cpu: "max"),
        Board(machine: "microvm,kernel-irqchip=off", cpu: "max")
    ]

    @Test(arguments: boards) func boots(board: Board) throws {
        let qemu = try QEMU.boot(
            board.machine, processors: "\(board.processors)", cpu: board.cpu, running: "echo processors=$(nproc)",
            options: ["-no-reboot"])
        qemu.expectSuccess()
        #expect(qemu.child.outputText.contains("processors=\(board.processors)\r\n"), qemu.account)
    }

    /// The firmware reads a loader from a disk, which reads a kernel: code that comes by direct memory access.
    @Test(
        .enabled(if: BootDisk.isAvailable, BootDisk.missing),
        arguments: [("q35", "virtio-blk-pci"), ("pc,kernel-irqchip=split", "ide-hd")])
    func bootsFromDisk(machine: String, device: String) throws {
        let directory = QEMU.sharedDirectory()
        let disk = try BootDisk.make(running: "uname -r", in: directory)
        let qemu = try QEMU(
            ["-machine", machine, "-m", "256", "-no-reboot", "-drive", "if=none,id=disk,format=raw,file=\(disk)"]
                + ["-device", "\(device),drive=disk"], in: directory)
        qemu.expectSuccess()
        #expect(qemu.child.outputText.contains("The loader runs."), qemu.account)
    }

    /// A disk is copied to another, and a file fetched from the network, by devices that use ioeventfd, irqfd and MSI-X.
    @Test(.enabled(VirtioGuest.missing) { VirtioGuest.initramfs != nil }, arguments: ["q35", "pc,kernel-irqchip=split"])
    func virtioDevices(machine: String) throws {
        let initramfs = try #require(VirtioGuest.initramfs)
        let directory = QEMU.sharedDirectory()
        let data = (0..<UInt32(1 << 20)).flatMap { number in
            (0..<4).map { UInt8(truncatingIfNeeded: (number &* 2_654_435_761) >> (8 * $0)) }
        }
        let source = directory.write(data, to: "source")
        let target = directory.write([UInt8](repeating: 0, count: data.count), to: "target")
        let fetched = directory.write(Array(data.prefix(1 << 20)), to: "fetched")
        chmod(target, 0o666)
        let qemu = try QEMU.boot(
            machine, processors: "2", initramfs: initramfs,
            running: """
                \(VirtioGuest.loadModules); dd if=/dev/vda of=/dev/vdb bs=64k; sync; \
                ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; nc 10.0.2.100 80 > /tmp/fetched; \
                head -c 1048576 /dev/vdb | cmp - /tmp/fetched && echo SA''ME; grep virtio /proc/interrupts
                """,
            options: [
                "-no-reboot", "-object", "iothread,id=thread",
                "-drive", "if=none,id=source,format=raw,readonly=on,file=\(source)",
                "-device", "virtio-blk-pci,drive=source,iothread=thread",
                "-drive", "if=none,id=target,format=raw,file=\(target)", "-device", "virtio-blk-pci,drive=target",
                "-netdev", "user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:80-cmd:cat \(fetched)",
                "-device", "virtio-net-pci,netdev=net"
            ], in: directory)
        qemu.expectSuccess()
        #expect(qemu.child.outputText.contains("SAME\r\n"), qemu.account)
        #expect(qemu.child.outputText.contains("PCI-MSI"), qemu.account)
        #expect(ScratchDirectory.contents(of: target) == data)
    }

    // MARK: The monitor

    /// What a guest does that is moved: it goes on writing memory until it is sent a line, and looks whether all is right.
    private static let mover = """
        (read x < /dev/console; touch /tmp/stop) & seq 1 700000 > /tmp/a; md5sum /tmp/a > /tmp/sums; \
        i=0; until [ -e /tmp/stop ]; do cp /tmp/a /tmp/b; cp /tmp/b /tmp/a; i=$((i+1)); echo round $i; \
        seq 1 20000 | md5sum | grep -q e071f707df7bbeee2a6a1eb48011ddd0 || echo WRO''NG; done; md5sum -c /tmp/sums
        """

    private func expectRightResults(_ qemu: QEMU) {
        qemu.child.send("\n")
        qemu.expectSuccess()
        #expect(qemu.child.outputText.contains("/tmp/a: OK\r\n"), qemu.account)
        #expect(!qemu.child.outputText.contains("WRONG"), qemu.account)
    }

    @Test(.enabled(if: Client.hasProgram("qemu-img"), "needs the package qemu-utils")) func snapshot() throws {
        let directory = QEMU.sharedDirectory()
        let image = "\(directory.path)/image.qcow2"
        let tool = try ChildProcess(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"])
        try #require(tool.wait() == .exited(0), Client.account(tool))
        chmod(image, 0o666)
        let qemu = try QEMU.boot(
            "q35", processors: "2", running: Self.mover, options: ["-no-reboot", "-drive", "if=none,file=\(image)"],
            input: .pipe, in: directory)
        try #require(qemu.waitForLine("round 2"), qemu.account)
        #expect(try !qemu.perform("savevm first").contains("Error"))
        #expect(try qemu.perform("info snapshots").contains("first"))
        let line = "round \(qemu.child.output.occurrences(of: "round ") + 4)"
        try #require(qemu.waitForLine(line), qemu.account)
        #expect(try !qemu.perform("loadvm first").contains("Error"))
        // It was before the guest's time went back.
        try #require(qemu.waitForLine(line, count: 2), qemu.account)
        expectRightResults(qemu)
    }

    @Test(arguments: [
        Board(machine: "q35", processors: 2, cpu: "host"), Board(machine: "pc", processors: 1, cpu: "max"),
        Board(machine: "q35,kernel-irqchip=split", processors: 2, cpu: "host")
    ])
    func migration(board: Board) throws {
        func start(_ options: [String] = []) throws -> QEMU {
            try QEMU.boot(
                board.machine, processors: "\(board.processors)", cpu: board.cpu, running: Self.mover,
                options: ["-no-reboot"] + options, input: .pipe)
        }
        let directory = QEMU.sharedDirectory()
        let place = "unix:\(directory.path)/migration"
        let source = try start()
        try #require(source.waitForLine("round 2"), source.account)
        let target = try start(["-incoming", place])
        #expect(try target.perform("info status").contains("inmigrate"))
        _ = try source.perform("migrate_set_parameter max-bandwidth 1G")
        _ = try source.perform("migrate_set_parameter downtime-limit 2000")
        let answer = try source.perform("migrate \(place)")
        #expect(try source.perform("info migrate").contains("status: completed"), "\(answer)")
        // The target's console shows rounds only after it has taken over.
        try #require(target.child.waitForOutput(containing: "round "), target.account)
        expectRightResults(target)
        source.child.signal(SIGTERM)
        #expect(source.child.wait() == .exited(0), source.account)
    }

    @Test(arguments: [("q35", "host"), ("pc", "max")]) func hotplug(machine: String, cpu: String) throws {
        let qemu = try QEMU.boot(
            machine, processors: "1,maxcpus=2", memory: "256,slots=2,maxmem=1G", cpu: cpu,
            running: """
                cd /sys/devices/system; echo REA''DY; until [ -e cpu/cpu1/online ]; do sleep 0.1; done; \
                echo 1 > cpu/cpu1/online; echo processors=$(nproc); \
                n=$(ls -d memory/memory* | wc -l); echo PLUG''GED; \
                while [ $(ls -d memory/memory* | wc -l) -lt $((n+2)) ]; do sleep 0.1; done; \
                for m in memory/memory*/state; do if grep -q offline $m; then echo online > $m; fi; done; \
                set -- $(grep MemTotal /proc/meminfo); echo megabytes=$(($2/1024)); \
                taskset 2 sh -c 'seq 1 20000 | md5sum'
                """, options: ["-no-reboot"])
        try #require(qemu.waitForLine("READY"), qemu.account)
        let plugged = try qemu.perform("device_add \(cpu)-x86_64-cpu,id=second,socket-id=0,core-id=1,thread-id=0")
        #expect(!plugged.contains("Error"), "\(plugged)")
        try #require(qemu.waitForLine("PLUGGED"), qemu.account)
        #expect(try !qemu.perform("object_add memory-backend-ram,id=more,size=256M").contains("Error"))
        #expect(try !qemu.perform("device_add pc-dimm,id=module,memdev=more").contains("Error"))
        qemu.expectSuccess()
        let text = qemu.child.outputText
        #expect(text.contains("processors=2\r\n"), qemu.account)
        #expect(text.contains("e071f707df7bbeee2a6a1eb48011ddd0  -\r\n"), qemu.account)
        let megabytes = text.components(after: "megabytes=").compactMap { Int($0.prefix { $0.isNumber }) }.last ?? 0
        #expect(megabytes > 384, qemu.account)
    }

    /// Firmware with system management mode, again and again: by the guest's wish, and in the middle of anything.
    @Test(arguments: ["q35,smm=on", "pc,smm=on", "q35,kernel-irqchip=split"]) func resets(machine: String) throws {
        let qemu = try QEMU.boot(machine, processors: "2", running: "echo U''P; reboot -f; sleep 60")
        try #require(qemu.waitForLine("UP", count: 2), qemu.account)
        for _ in 0..<4 {
            _ = try qemu.perform("system_reset")
            usleep(150_000)
        }
        let count = qemu.child.output.occurrences(of: "UP\r\n")
        try #require(qemu.waitForLine("UP", count: count + 2), qemu.account)
        qemu.child.signal(SIGTERM)
        #expect(qemu.child.wait() == .exited(0), qemu.account)
    }
}

extension String {
    /// What follows each `mark`, up to the next.
    func components(after mark: String) -> [Substring] {
        var parts: [Substring] = []
        var rest = self[...]
        while let range = rest.firstRange(of: mark) {
            rest = rest[range.upperBound...]
            parts.append(rest)
        }
        return parts
    }
}
