import Addressing

extension GuestLoader {
    /// A kernel in guest RAM.
    struct PlacedKernel {
        /// The memory it takes until it manages memory itself.
        var range: Range<GuestPhysicalAddress>
        /// The 64-bit entry.
        var entry: UInt64
        /// The 32-bit entry, if that is the one to use.
        var pvhEntry: UInt32?
        /// Of a bzImage.
        var header: SetupHeader?
        var unpacksItself = false
        var compression: PayloadCompression?
    }

    /// Reads the kernel and writes it to RAM.
    ///
    /// - Parameters:
    ///   - usable: the RAM it may take.
    ///   - aboveUsable: the bytes of low RAM above that, for the message.
    func placeKernel(
        _ source: BootSource, in ram: GuestRAM, usable: Range<GuestPhysicalAddress>, aboveUsable: UInt64
    ) throws(BootError) -> PlacedKernel {
        let file = try source.read(as: .kernel, limit: Self.kernelFileLimit)
        let target = Target(name: source.name, ram: ram, usable: usable, aboveUsable: aboveUsable)
        do {
            switch try KernelImage(parsing: file.bytes) {
            case .elf(let image):
                return try place(image, file.bytes, on: target, isFromBzImage: false)
            case .bzImage(let header):
                if unpack == .guest { return try place(header, file.bytes, on: target) }
                // The payload may be whole in a file that is not; what is missing tells of a bad copy.
                _ = try header.protectedMode(in: file.bytes)
                let payload = file.bytes.extracting(try header.payload(in: file.bytes))
                let compression = try PayloadCompression(of: payload)
                let kernel = try compression.unpack(payload, limit: Int(clamping: ram.lowEnd.value))
                guard kernel.bytes.matches(ELFImage.magic) else {
                    throw KernelImageError.malformed(part: .payload, detail: "what it unpacks to is no ELF file")
                }
                let image = try ELFImage(parsing: kernel.bytes)
                var placed = try place(image, kernel.bytes, on: target, isFromBzImage: true)
                placed.header = header
                placed.compression = compression
                return placed
            }
        } catch let error as KernelImageError {
            throw .kernel(name: source.name, error)
        } catch let error as BootError {
            throw error
        } catch {
            preconditionFailure("the kernel was placed outside the RAM it was checked against")
        }
    }

    /// Where a kernel goes, and what it is called.
    private struct Target {
        var name: String
        var ram: GuestRAM
        var usable: Range<GuestPhysicalAddress>
        var aboveUsable: UInt64

        /// `start ..< start + byteCount`, which is RAM that the kernel may take.
        func range(start: UInt64, byteCount: UInt64) throws(BootError) -> Range<GuestPhysicalAddress> {
            let (end, overflow) = start.addingReportingOverflow(byteCount)
            func outside(_ reason: String) -> BootError {
                .kernelOutsideRAM(name: name, start: start, end: overflow ? .max : end, reason: reason)
            }
            guard start >= usable.lowerBound.value else {
                throw outside("but memory below 1 MiB is the loader's; use a kernel for x86-64")
            }
            guard !overflow, end <= BoardLayout.holeStart.value else {
                throw outside("but RAM below 4 GiB ends at 3 GiB; use a kernel linked lower")
            }
            guard end <= usable.upperBound.value else {
                throw .memoryTooSmall(given: ram.byteCount, needed: end + aboveUsable)
            }
            return GuestPhysicalAddress(start)..<GuestPhysicalAddress(end)
        }
    }

    /// Writes the segments of an ELF kernel to their physical addresses.
    private func place(
        _ image: ELFImage, _ file: RawSpan, on target: Target, isFromBzImage: Bool
    ) throws -> PlacedKernel {
        let pvhEntry = try chooseEntry(image, file, isFromBzImage: isFromBzImage)
        let extent = image.physicalRange
        let range = try target.range(start: extent.lowerBound, byteCount: extent.upperBound - extent.lowerBound)
        for segment in image.segments {
            let start = GuestPhysicalAddress(segment.physicalAddress)
            let fileByteCount = UInt64(segment.file.count)
            try target.ram.write(file.extracting(segment.file), at: start)
            try target.ram.zero(at: start + fileByteCount, byteCount: segment.memoryByteCount - fileByteCount)
        }
        return PlacedKernel(range: range, entry: image.entry, pvhEntry: pvhEntry)
    }

    /// The PVH entry if that is the protocol to use, nil for the 64-bit Linux protocol.
    private func chooseEntry(
        _ image: ELFImage, _ file: RawSpan, isFromBzImage: Bool
    ) throws(KernelImageError) -> UInt32? {
        guard !image.isUserProgram else {
            throw .unsupported(
                detail: "it is a program for an operating system, expected a kernel; use vmlinuz or vmlinux")
        }
        let pvhEntry = image.pvhEntry.map { UInt32(truncatingIfNeeded: $0) }
        switch entry {
        case .linux64:
            return nil
        case .pvh:
            if let pvhEntry { return pvhEntry }
            throw .unsupported(
                detail: "it has no PVH entry; use the 64-bit Linux protocol, or a kernel built with CONFIG_PVH")
        case .automatic:
            if isFromBzImage { return nil }
            if let pvhEntry { return pvhEntry }
            guard image.containsLinuxBanner(file) else {
                throw .unsupported(
                    detail: "it is an ELF file with neither a PVH entry nor Linux inside; use a kernel that has one")
            }
            return nil
        }
    }

    /// Writes the protected-mode part of a bzImage, which unpacks itself.
    private func place(_ header: SetupHeader, _ file: RawSpan, on target: Target) throws -> PlacedKernel {
        guard entry != .pvh else {
            throw KernelImageError.unsupported(
                detail: "a kernel that unpacks itself is not entered by PVH; let the host unpack it (--unpack host)")
        }
        guard header.has64BitEntry else {
            throw KernelImageError.unsupported(
                detail: "it has no 64-bit entry (XLF_KERNEL_64); use an x86-64 (amd64) kernel, Linux 3.8 or newer")
        }
        let part = try header.protectedMode(in: file)
        let start = header.isRelocatable ? header.preferredAddress : BoardLayout.extendedMemoryStart.value
        guard start.isMultiple(of: pageSize) else {
            throw KernelImageError.malformed(
                part: .setupHeader, detail: "the preferred address \(hexadecimal(start)) is inside a page")
        }
        // One that cannot move itself unpacks to where it is linked, and works from there on.
        let (end, overflow) = max(start, header.preferredAddress).addingReportingOverflow(UInt64(header.initByteCount))
        let byteCount = max(UInt64(part.count), overflow || end < start ? .max : end - start)
        let range = try target.range(start: start, byteCount: byteCount)
        try target.ram.write(file.extracting(part), at: range.lowerBound)
        return PlacedKernel(range: range, entry: start + 0x200, header: header, unpacksItself: true)
    }

    /// Reads the initramfs and writes it as high in low RAM as the kernel can take it.
    func placeInitramfs(
        in ram: GuestRAM, usable: Range<GuestPhysicalAddress>, kernel: PlacedKernel
    ) throws(BootError) -> Range<GuestPhysicalAddress>? {
        guard let initramfs else { return nil }
        // Kernels before protocol 2.03 and ELF files do not say; 2 GiB is what 64-bit kernels say.
        let maximum = kernel.header?.initramfsAddressMaximum ?? 0x7FFF_FFFF
        let top = min(usable.upperBound.value, UInt64(maximum) + 1) & ~(pageSize - 1)
        let bottom = (kernel.range.upperBound.value + pageSize - 1) & ~(pageSize - 1)
        let available = top > bottom ? top - bottom : 0
        let contents = try initramfs.read(as: .initramfs, limit: ram.lowEnd.value)
        let byteCount = UInt64(contents.count)
        guard byteCount <= available else {
            throw .initramfsDoesNotFit(
                name: initramfs.name, byteCount: byteCount, available: available, ramByteCount: ram.byteCount)
        }
        let start = GuestPhysicalAddress((top - byteCount) & ~(pageSize - 1))
        do {
            try ram.write(contents.bytes, at: start)
        } catch {
            preconditionFailure("the initramfs was placed outside the RAM it was checked against")
        }
        return start..<start + byteCount
    }
}
