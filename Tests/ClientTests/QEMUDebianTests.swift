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
        try wait(for: "debian login: ")
        qemu.child.send("root\n")
        try wait(for: "Password: ")
        qemu.child.send("\(DebianDisk.password)\n")
        try wait(for: "root@debian:~# ")

        // The terminal shows the commands, too: what is looked for in the answers has a pair of quotes in them.
        qemu.child.send("systemctl is-system-running --wait | sed s/^/state''=/\n")
        try wait(for: "state=")
        qemu.child.send(
            "echo root''=$(findmnt --noheadings --output SOURCE,FSTYPE /); uname -a; echo processors''=$(nproc)\n")
        try wait(for: "processors=")
        // Each processor computes on its own; the second reads what the first wrote.
        qemu.child.send(
            "seq 1 200000 >one; (for c in 1 2; do taskset $c sha256sum one & done; wait); echo sums''=done\n")
        try wait(for: "sums=done")
        qemu.child.send(
            "awk '/^cpu[01] /{print $1 \"''=\" ($2 > 0)}' /proc/stat; apt-get --version; dpkg --audit; echo audit''=$?\n"
        )
        try wait(for: "audit=")
        // What was installed is what is read.
        qemu.child.send(
            "cd /; cat var/lib/dpkg/info/*.md5sums | grep -v -E ' usr/share/(doc|info|locale|man)/' | md5sum --quiet -c -; echo files''=$?\n"
        )
        try wait(for: "files=")
        qemu.child.send("systemctl poweroff\n")
        #expect(qemu.child.wait(patienceSeconds: 300) == .exited(0), qemu.account)

        let text = qemu.child.outputText
        for answer in [
            "state=running\r\n", "root=/dev/vda ext4\r\n", "Linux debian ", "processors=2\r\n", "cpu0=1\r\n",
            "cpu1=1\r\n",
            "\r\napt ", "audit=0\r\n", "files=0\r\n", "reboot: Power down"
        ] {
            #expect(text.contains(answer), "no \(answer) in:\n\(text.suffix(6000))")
        }
        let sum = "5af7b95208fdcff454bab3f5eddf567a688a3796c703d4fef91072e38645c062  one\r\n"
        #expect(text.components(after: sum).count == 2, qemu.account)
        for trouble in ["Call Trace:", "BUG:", "Kernel panic", "soft lockup", "FAILED"] {
            #expect(!text.contains(trouble), "\(trouble) in:\n\(text.suffix(6000))")
        }
    }
}
