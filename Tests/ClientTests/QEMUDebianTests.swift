import TestSupport
import Testing

extension QEMUTests {
    /// An installation of Debian with systemd, from a disk: its user logs in, works on both processors, and powers off.
    @Test(
        .enabled(if: DebianDisk.hasTools, DebianDisk.missingTools),
        .enabled(VirtioGuest.missing) { VirtioGuest.initramfs != nil },
        .enabled(DebianDisk.missing) { DebianDisk.image != nil })
    func debian() throws {
        let directory = QEMU.sharedDirectory()
        let disk = try DebianDisk.copy(to: directory)
        let files = try #require(QEMU.readableGuests[.cloud])
        let qemu = try QEMU(
            [
                "-machine", "q35", "-smp", "2", "-m", "512", "-cpu", "host", "-no-reboot", "-kernel", files.kernel,
                "-initrd", try #require(VirtioGuest.initramfs),
                "-append", "console=ttyS0 panic=-1 \(VirtioGuest.startsDisk) root=/dev/vda rw",
                "-drive", "if=none,id=disk,format=raw,file=\(disk)", "-device", "virtio-blk-pci,drive=disk"
            ], input: .pipe, in: directory)

        func wait(for text: String) throws {
            try #require(qemu.child.waitForOutput(containing: text, patienceSeconds: 300), qemu.account)
        }
        /// Has the shell perform `commands`, and waits until it has; `name` is unique.
        func perform(_ name: String, _ commands: String) throws {
            // The terminal shows what it is sent, too.
            qemu.child.send("\(commands); echo \(name)''=$?\n")
            try wait(for: "\(name)=")
        }
        try wait(for: "debian login: ")
        qemu.child.send("root\n")
        try wait(for: "Password: ")
        qemu.child.send("\(DebianDisk.password)\n")
        try wait(for: "root@debian:~# ")

        try perform("waited", "systemctl is-system-running --wait | sed s/^/state''=/")
        try perform("named", "uname -a; echo root''=$(findmnt --noheadings --output SOURCE,FSTYPE /)")
        try perform("counted", "echo processors''=$(nproc)")
        // Each processor computes by itself, from what one of them wrote.
        try perform("written", "seq 1 200000 >one")
        try perform("summed", "(for c in 1 2; do taskset $c sha256sum one & done; wait)")
        try perform("used", #"awk '/^cpu[01] /{ print $1 "''=" ($2 > 0) }' /proc/stat"#)
        try perform("asked", "apt-get --version")
        try perform("audited", #"test -z "$(dpkg --audit)""#)
        // What was installed is what is read.
        let unpacked = "grep -v -E ' usr/share/(doc|info|locale|man)/' /var/lib/dpkg/info/*.md5sums --no-filename"
        try perform("checked", "cd /; \(unpacked) >sums; wc -l <sums; md5sum --quiet --check sums")
        qemu.child.send("systemctl poweroff\n")
        #expect(qemu.child.wait(patienceSeconds: 300) == .exited(0), qemu.account)

        let text = qemu.child.outputText
        for answer in [
            "state=running", "Linux debian ", "root=/dev/vda ext4", "processors=2", "written=0", "cpu0=1", "cpu1=1",
            "apt 2.", "asked=0", "audited=0", "checked=0", "reboot: Power down"
        ] {
            #expect(text.contains(answer), "no \(answer) in:\n\(text.suffix(6000))")
        }
        let sum = "5af7b95208fdcff454bab3f5eddf567a688a3796c703d4fef91072e38645c062  one\r\n"
        #expect(qemu.child.output.occurrences(of: sum) == 2, qemu.account)
        for trouble in ["Call Trace:", "BUG:", "Kernel panic", "soft lockup", "FAILED"] {
            #expect(!text.contains(trouble), "\(trouble) in:\n\(text.suffix(6000))")
        }
    }
}
