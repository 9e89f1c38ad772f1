import DefaultGuest
import Glibc
import TestSupport
import Testing

/// A disk with a boot loader, a kernel and an initramfs, made of Debian's GRUB without privileges.
enum BootDisk {
    private static let loaderFolder = "/usr/lib/grub/i386-pc"

    static var isAvailable: Bool {
        access("\(loaderFolder)/boot.img", R_OK) == 0 && Client.hasProgram("grub-mkimage") && mkfs != nil
    }

    static let missing: Comment = "needs the packages grub-pc-bin and e2fsprogs"

    static let mkfs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].first { (path: String) in access(path, X_OK) == 0 }
    private static let partitionStart: UInt32 = 2048
    private static let partitionMegabytes: UInt32 = 40

    /// Makes a disk whose guest runs `command`.
    /// - Returns: its path in `directory`.
    static func make(running command: String, in directory: ScratchDirectory) throws -> String {
        let guest = try #require(QEMU.readableGuests[.cloud])
        let configuration = directory.write(
            Array(
                """
                serial --unit=0
                terminal_output serial
                set root=hd0,msdos1
                echo The loader runs.
                linux /kernel console=ttyS0 panic=-1 martlet.run="\(command)"
                initrd /initramfs
                boot

                """.utf8), to: "loader.cfg")
        let (files, core, disk) =
            ("\(directory.path)/files", "\(directory.path)/core.img", "\(directory.path)/disk.img")
        let script = """
            set -e
            mkdir '\(files)'
            cp '\(guest.kernel)' '\(files)/kernel'
            cp '\(guest.initramfs)' '\(files)/initramfs'
            grub-mkimage --format=i386-pc --output='\(core)' --config='\(configuration)' --prefix=/ \
                biosdisk part_msdos ext2 linux serial terminal echo
            truncate --size=\(partitionMegabytes + 1)M '\(disk)'
            '\(mkfs!)' -q -t ext2 -d '\(files)' -E offset=\(partitionStart * 512) '\(disk)' \(partitionMegabytes)M
            chmod 666 '\(disk)'
            """
        let tools = try ChildProcess(["/bin/sh", "-c", script])
        try #require(tools.wait() == .exited(0), Client.account(tools))
        try writeLoader(core: core, to: disk)
        return disk
    }

    /// The first sector with its table of partitions, and the loader's core behind it.
    private static func writeLoader(core: String, to disk: String) throws {
        var sector = try #require(ScratchDirectory.contents(of: "\(loaderFolder)/boot.img"))
        let core = try #require(ScratchDirectory.contents(of: core))
        try #require(sector.count == 512 && core.count <= (Int(partitionStart) - 1) * 512)
        // Bootable, and addressed by number only; of Linux's type. The other three entries are empty.
        var table: [UInt8] = [0x80, 0, 33, 0, 0x83, 254, 255, 255]
        for number in [partitionStart, partitionMegabytes * 2048] {
            table += (0..<4).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
        }
        sector.replaceSubrange(446..<510, with: table + [UInt8](repeating: 0, count: 48))
        let descriptor = open(disk, O_WRONLY | O_CLOEXEC)
        try #require(descriptor >= 0)
        defer { close(descriptor) }
        let bytes = sector + core
        try #require(bytes.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) } == bytes.count)
    }
}

/// The cloud guest with its kernel's modules for virtio, and for the file system of a disk.
enum VirtioGuest {
    /// In the order in which they are loaded.
    private static let modules = [
        "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk",
        "failover",
        "net_failover", "virtio_net"
    ]
    private static let fileSystemModules = ["crc32c_generic", "crc16", "mbcache", "jbd2", "ext4"]

    static let missing: Comment = "needs the package cpio, and the kernel's package: a network, or apt's cache"

    /// What the guest's shell does first.
    static let loadModules = load(modules)

    private static func load(_ modules: [String]) -> String {
        "for m in \(modules.joined(separator: " ")); do insmod /lib/virtio/$m.ko; done"
    }

    /// The kernel's argument for a first process that hands over to that of the first disk.
    static let startsDisk = "rdinit=/lib/virtio/start"

    private static let startOfDisk = """
        #!/bin/sh
        mount -t devtmpfs devtmpfs /dev
        \(load(modules + fileSystemModules))
        until [ -e /dev/vda ]; do sleep 0.1; done
        mkdir /disk
        mount -t ext4 /dev/vda /disk
        mount --move /dev /disk/dev
        exec switch_root /disk /sbin/init

        """

    private static let directory = QEMU.sharedDirectory()

    /// The path of its initramfs; nil if the modules cannot be had.
    static let initramfs: String? = {
        guard let guest = MartletCommand.guest(.cloud), let readable = QEMU.readableGuests[.cloud],
            Client.hasProgram("cpio"), let manifest = ScratchDirectory.contents(of: manifest(beside: guest))
        else { return nil }
        let words = String(decoding: manifest, as: UTF8.self).split(separator: "\n")[0].split(separator: " ")
        guard words.count == 2 else { return nil }
        let result = "\(directory.path)/initramfs"
        let start = directory.write(Array(startOfDisk.utf8), to: "start")
        let names = (modules + fileSystemModules).map { "-name \($0).ko" }.joined(separator: " -o ")
        let script = """
            set -e
            cd '\(directory.path)'
            mkdir package root root/lib root/lib/virtio
            (cd package && apt-get --quiet=2 download '\(words[0])=\(words[1])')
            dpkg-deb --fsys-tarfile package/*.deb | tar --extract --directory package --wildcards './lib/modules/*'
            find package \\( \(names) \\) -exec cp {} root/lib/virtio/ \\;
            install --mode=755 '\(start)' root/lib/virtio/
            (cd root && find . | cpio --quiet --create --format=newc) > modules.cpio
            cat '\(readable.initramfs)' modules.cpio > '\(result)'
            rm -r package
            """
        guard let tools = try? ChildProcess(["/bin/sh", "-c", script]), tools.wait() == .exited(0) else { return nil }
        return result
    }()

    private static func manifest(beside guest: DefaultGuest) -> String {
        guest.kernel.removingLastComponent().appending("manifest").string
    }
}
