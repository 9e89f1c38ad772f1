import AddressSpace
import Addressing
import Synchronization
import SystemPackage
import Testing

@Suite(.serialized) struct ListenerTests {
    let topology = MemoryTopology()
    let root: MemoryRegion
    let ram: MemoryRegion
    let space: AddressSpace
    let listener = RecordingListener()

    init() throws {
        root = topology.makeContainer("root", byteCount: 1 << 64)
        ram = topology.makeRAM("ram", host: HostVirtualAddress(0x1000_0000), byteCount: 0x8000)
        try root.add(ram, at: 0)
        space = AddressSpace("space", root: root)
        try space.add(listener)
    }

    @Test func newListenersHearOfEverything() {
        #expect(listener.log == ["begin", "add 0-7fff ram+0", "commit"])
    }

    @Test func deletesComeBeforeAdds() throws {
        let device = topology.makeDevice("device", Probe(), byteCount: 0x1000)
        try root.add(device, at: 0x2000, priority: 1)
        #expect(
            listener.log == [
                "begin", "delete 0-7fff ram+0", "add 0-1fff ram+0", "add 2000-2fff device+0", "add 3000-7fff ram+3000",
                "commit"
            ])
        try device.move(to: 0x6000)
        #expect(
            listener.log == [
                "begin", "delete 0-1fff ram+0", "delete 2000-2fff device+0", "delete 3000-7fff ram+3000",
                "add 0-5fff ram+0", "add 6000-6fff device+0", "add 7000-7fff ram+7000", "commit"
            ])
        try ram.resize(to: 0x7000)
        #expect(
            listener.log == [
                "begin", "delete 7000-7fff ram+7000", "keep 0-5fff ram+0", "keep 6000-6fff device+0", "commit"
            ])
    }

    @Test func aTransactionIsOneChange() throws {
        let device = topology.makeDevice("device", Probe(), byteCount: 0x1000)
        try topology.transaction { () throws(Errno) in
            try root.add(device, at: 0x2000, priority: 1)
            try topology.transaction { () throws(Errno) in
                try ram.setReadOnly(true)
                try device.setEnabled(false)
            }
            #expect(listener.log == ["begin", "add 0-7fff ram+0", "commit"])
        }
        #expect(listener.log == ["begin", "delete 0-7fff ram+0", "add 0-7fff ram+0 ro", "commit"])
        // Nothing that is seen changes.
        try device.move(to: 0x3000)
        #expect(listener.log.last == "commit" && listener.log.count == 4)
    }

    @Test func loggingAloneReplacesNothing() throws {
        try ram.setDirtyLogging(true)
        #expect(listener.log == ["begin", "keep 0-7fff ram+0 log logging true", "commit"])
        try ram.setDirtyLogging(false)
        #expect(listener.log == ["begin", "keep 0-7fff ram+0 logging false", "commit"])
    }

    /// A listener that refuses leaves everything as it was: regions, view, and the listeners before it.
    @Test func refusedTransactionsAreTakenBack() throws {
        let second = RecordingListener()
        let third = RecordingListener()
        try space.add(second)
        try space.add(third)
        second.refusals = [.noMemory]
        let device = topology.makeDevice("device", Probe(), byteCount: 0x1000)
        let error = errno { () throws(Errno) in
            try topology.transaction { () throws(Errno) in
                try root.add(device, at: 0x2000, priority: 1)
                try ram.resize(to: 0x5000)
                try ram.setReadOnly(true)
            }
        }
        #expect(error == .noMemory)
        #expect(space.text == ["0-7fff ram+0"])
        #expect(device.container == nil && device.priority == 0 && ram.byteCount == 0x8000 && !ram.isReadOnly)
        #expect(listener.ranges.map(\.text) == ["0-7fff ram+0"])
        #expect(
            listener.log
                == [
                    "begin", "delete 0-4fff ram+0 ro", "add 0-7fff ram+0", "commit"
                ].replacing(
                    ["delete 0-4fff ram+0 ro"],
                    with: ["delete 0-1fff ram+0 ro", "delete 2000-2fff device+0", "delete 3000-4fff ram+3000 ro"]))
        // The third has heard nothing.
        #expect(third.log == ["begin", "add 0-7fff ram+0", "commit"])
        try root.add(device, at: 0x2000, priority: 1)
        #expect([listener, second, third].allSatisfy { $0.agrees(with: space.view) && $0.fault == nil })
    }

    @Test func cancelledTransactionsAreTakenBack() throws {
        struct Stop: Error {}
        topology.begin()
        try ram.resize(to: 0x1000)
        topology.begin()
        try ram.resize(to: 0x2000)
        topology.cancel()
        #expect(ram.byteCount == 0x1000)
        try topology.commit()
        #expect(space.text == ["0-fff ram+0"])
        let error = errno { () throws(Errno) in
            try topology.transaction { () throws(Errno) in
                try ram.resize(to: 0x3000)
                throw Errno.ioError
            }
        }
        #expect(error == .ioError && ram.byteCount == 0x1000)
    }

    @Test func severalSpacesChangeTogether() throws {
        let other = AddressSpace("other", root: topology.makeAlias("all", of: root, byteCount: 1 << 64))
        let last = RecordingListener()
        try other.add(last)
        try ram.move(to: 0x10000)
        #expect(space.text == ["10000-17fff ram+0"] && other.text == space.text)
        last.refusals = [.noSpace]
        #expect(errno { () throws(Errno) in try ram.move(to: 0) } == .noSpace)
        #expect(space.text == ["10000-17fff ram+0"] && other.text == space.text)
        #expect(listener.agrees(with: space.view) && last.agrees(with: other.view))
    }

    /// Regions live while a view or a listener has them, and no longer.
    @Test func referencesAreDropped() throws {
        let before = Pages.alive.load(ordering: .relaxed)
        do {
            let pages = Pages(4)
            let region = topology.makeRAM("pages", host: pages.host, byteCount: 0x4000, owner: pages)
            try root.add(region, at: 0x100_0000)
        }
        #expect(Pages.alive.load(ordering: .relaxed) == before + 1)
        #expect(space.view.ranges.count == 2)
        try root.remove(root.subregions[0])
        // The listener has been told, and dropped it; the view is freed when the commit returns.
        #expect(Pages.alive.load(ordering: .relaxed) == before)
        try space.remove(listener)
        #expect(listener.ranges.isEmpty && listener.log == ["begin", "delete 0-7fff ram+0", "commit"])
        try ram.resize(to: 0x1000)
        #expect(listener.log.count == 3)
    }
}

extension [String] {
    /// The array with the one element of `old` replaced.
    fileprivate func replacing(_ old: [String], with new: [String]) -> [String] {
        flatMap { old.contains($0) ? new : [$0] }
    }
}
