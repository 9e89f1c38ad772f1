import AddressSpace
import Addressing
import SystemPackage
import Testing

@Suite struct FlatViewTests {
    let topology = MemoryTopology()

    private func space(_ root: MemoryRegion) -> AddressSpace { AddressSpace("space", root: root) }

    private func ram(_ name: String, _ byteCount: UInt64, host: UInt = 0x1000_0000) -> MemoryRegion {
        topology.makeRAM(name, host: HostVirtualAddress(host), byteCount: byteCount)
    }

    @Test func higherPrioritiesAndLaterRegionsAreSeen() throws {
        let root = topology.makeContainer("root", byteCount: 1 << 64)
        let space = space(root)
        #expect(space.text.isEmpty)
        let low = ram("low", 0x4000)
        try root.add(low, at: 0)
        try root.add(topology.makeDevice("device", Probe(), byteCount: 0x1000), at: 0x1000, priority: 1)
        #expect(space.text == ["0-fff low+0", "1000-1fff device+0", "2000-3fff low+2000"])
        try root.add(topology.makeDevice("below", Probe(), byteCount: 0x2000), at: 0x3000, priority: -1)
        try root.add(topology.makeDevice("later", Probe(), byteCount: 0x800), at: 0, priority: 0)
        #expect(
            space.text == [
                "0-7ff later+0", "800-fff low+800", "1000-1fff device+0", "2000-3fff low+2000", "4000-4fff below+1000"
            ])
    }

    @Test func containersClipAndHide() throws {
        let root = topology.makeContainer("root", byteCount: 1 << 64)
        let window = topology.makeContainer("window", byteCount: 0x2000)
        let space = space(root)
        try window.add(ram("ram", 0x10000), at: 0x1000)
        try root.add(window, at: 0x8000)
        #expect(space.text == ["9000-9fff ram+0"])
        try window.resize(to: 0x3000)
        #expect(space.text == ["9000-afff ram+0"])
        try window.setEnabled(false)
        #expect(space.text.isEmpty)
        try window.setEnabled(true)
        try window.setReadOnly(true)
        #expect(space.text == ["9000-afff ram+0 ro"])
        try window.move(to: 0x100_0000)
        #expect(space.text == ["1001000-1002fff ram+0 ro"])
        try root.remove(window)
        #expect(space.text.isEmpty && window.container == nil)
    }

    /// What an alias shows begins before its target's own address, and neighbouring windows of one region are one range.
    @Test func aliases() throws {
        let root = topology.makeContainer("root", byteCount: 1 << 64)
        let space = space(root)
        let memory = ram("ram", 0x10000)
        try root.add(topology.makeAlias("first", of: memory, byteCount: 0x4000), at: 0)
        try root.add(topology.makeAlias("second", of: memory, offset: 0x4000, byteCount: 0x4000), at: 0x4000)
        try root.add(topology.makeAlias("far", of: memory, offset: 0xF000, byteCount: 0x4000), at: 0x100000)
        #expect(space.text == ["0-7fff ram+0", "100000-100fff ram+f000"])
        let readOnly = topology.makeAlias("read-only", of: memory, offset: 0x2000, byteCount: 0x1000)
        try readOnly.setReadOnly(true)
        try root.add(readOnly, at: 0x2000, priority: 1)
        #expect(
            space.text == [
                "0-1fff ram+0", "2000-2fff ram+2000 ro", "3000-7fff ram+3000", "100000-100fff ram+f000"
            ])
        try memory.setEnabled(false)
        #expect(space.text.isEmpty)
    }

    @Test func theEndOfTheAddressSpace() throws {
        let whole = topology.makeDevice("whole", Probe(), byteCount: 1 << 64)
        let space = space(whole)
        #expect(space.text == ["0-ffffffffffffffff whole+0"])
        #expect(space.view.ranges[0].addresses.byteCount == 1 << 64)
        #expect(space.view.index(containing: .max) == 0)
        try whole.add(ram("top", 0x1000), at: 0xFFFF_FFFF_FFFF_F000)
        #expect(
            space.text == ["0-ffffffffffffefff whole+0", "fffffffffffff000-ffffffffffffffff top+0"])
        // What sticks out at the end is not seen.
        try whole.add(ram("beyond", 0x4000), at: 0xFFFF_FFFF_FFFF_E000, priority: 1)
        #expect(
            space.text == ["0-ffffffffffffdfff whole+0", "ffffffffffffe000-ffffffffffffffff beyond+0"])
        #expect(space.read(at: .max - 0x4000, byteCount: 1) == (UInt64.max - 0x4000) & 0x7F)
        // An alias whose target begins below address 0.
        try whole.add(topology.makeAlias("back", of: whole.subregions[0], offset: 0x3000, byteCount: 0x4000), at: 0)
        #expect(space.text.first == "0-fff beyond+3000")
    }

    @Test func graphsHaveNoCycles() throws {
        let outer = topology.makeContainer("outer", byteCount: 0x1000)
        let inner = topology.makeContainer("inner", byteCount: 0x1000)
        try outer.add(inner, at: 0)
        #expect(errno { () throws(Errno) in try inner.add(outer, at: 0) } == .tooManySymbolicLinkLevels)
        #expect(errno { () throws(Errno) in try outer.add(outer, at: 0) } == .tooManySymbolicLinkLevels)
        let alias = topology.makeAlias("alias", of: outer, byteCount: 0x1000)
        #expect(errno { () throws(Errno) in try inner.add(alias, at: 0) } == .tooManySymbolicLinkLevels)
        #expect(errno { () throws(Errno) in try outer.add(inner, at: 8) } == .resourceBusy)
        #expect(errno { () throws(Errno) in try alias.add(inner, at: 0) } == .resourceBusy)
        #expect(errno { () throws(Errno) in try inner.remove(outer) } == .invalidArgument)
        let foreign = MemoryTopology().makeContainer("foreign", byteCount: 1)
        #expect(errno { () throws(Errno) in try outer.add(foreign, at: 0) } == .invalidArgument)
        #expect(outer.subregions.count == 1 && inner.subregions.isEmpty)
    }

    @Test func sizesHaveBounds() throws {
        let memory = ram("ram", 0x3000)
        #expect(errno { () throws(Errno) in try memory.resize(to: 0x3001) } == .invalidArgument)
        let device = topology.makeDevice("device", Probe(), byteCount: 1)
        #expect(errno { () throws(Errno) in try device.resize(to: 1 << 64 + 1) } == .invalidArgument)
        #expect(errno { () throws(Errno) in try device.setDirtyLogging(true) } == .invalidArgument)
        let space = space(memory)
        try memory.resize(to: 0)
        #expect(space.text.isEmpty)
        try memory.resize(to: 0x1800)
        #expect(space.text == ["0-17ff ram+0"])
        #expect(AddressRange(0x800, through: 0x3FFE).wholePages == AddressRange(0x1000, through: 0x2FFF))
        #expect(AddressRange(0x801, through: 0x1FFE).wholePages == nil)
        #expect(AddressRange(.max - 0x1FFF, through: .max).wholePages?.byteCount == 0x2000)
    }
}
