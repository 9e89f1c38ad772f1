import KVMInterface
import Machine

/// What `martlet inspect` prints for people.
struct InspectionText {
    private(set) var text = ""

    init(_ board: BoardInspection) {
        line("process \(board.process): \(board.kernel)")
        addFlatView(board.flatView)
        guard let core = board.core else {
            line("\nthe accelerator does not show its inside")
            return
        }
        for space in core.addressSpaces where space.number == 0 || !space.sets.allSatisfy(\.isEmpty) { addSlots(space) }
        addVCPUs(core.vcpus)
        addShadowPages(core.shadowPages)
        addGracePeriods(core.gracePeriods)
        heading("statistics")
        for (name, value) in core.statistics.sorted(by: { $0.key < $1.key }) { line("    \(pad(name, 30))\(value)") }
    }

    private mutating func addFlatView(_ ranges: [BoardInspection.Range]) {
        heading("flat view")
        for range in ranges {
            let kind = range.hostAddress.map { "at host \(hex($0))" } ?? "device"
            var marks = range.isReadOnly ? " read-only" : ""
            if range.isLogged { marks += " logged" }
            let offset = range.offset == 0 ? "" : " + \(hex(range.offset))"
            line("    \(hex(range.address))–\(hex(range.last))  \(range.region)\(offset), \(kind)\(marks)")
        }
    }

    private mutating func addSlots(_ space: MachineInspection.AddressSpace) {
        heading("memory slots of address space \(space.number), generation \(space.generation)")
        for (number, slots) in space.sets.enumerated() {
            line("    set \(number)\(number == space.activeSet ? " (active)" : ""): \(slots.count)")
            for slot in slots {
                var marks = slot.isReadOnly ? " read-only" : ""
                if slot.isLogged { marks += " logged" }
                if slot.isInvalid { marks += " INVALID" }
                let last = slot.guestAddress + slot.byteCount - 1
                line(
                    "        \(slot.id): \(hex(slot.guestAddress))–\(hex(last)) at host \(hex(slot.hostAddress))\(marks)"
                )
            }
        }
    }

    private mutating func addVCPUs(_ vcpus: [MachineInspection.VCPU]) {
        heading("vCPU table: \(vcpus.count)")
        for vcpu in vcpus {
            let numbers = vcpu.statistics.sorted { $0.key < $1.key }.filter { $0.value != 0 }
                .map { "\($0.key) \($0.value)" }.joined(separator: ", ")
            line("    \(vcpu.index): id \(vcpu.id), \(vcpu.state.rawValue); \(numbers)")
        }
    }

    private mutating func addShadowPages(_ pages: [MachineInspection.ShadowPage]) {
        heading("shadow page tables: \(pages.count) pages")
        // A page may hang below several: it is shown below the first.
        var shown: Set<Int> = []
        for (index, page) in pages.enumerated() where page.isRoot { addShadowPage(index, pages, 1, &shown) }
        for index in pages.indices where !shown.contains(index) { addShadowPage(index, pages, 1, &shown) }
    }

    private mutating func addShadowPage(
        _ index: Int, _ pages: [MachineInspection.ShadowPage], _ depth: Int, _ shown: inout Set<Int>
    ) {
        guard shown.insert(index).inserted else { return }
        let page = pages[index]
        var marks = page.isRoot ? " root" : ""
        if page.isDirect { marks += " direct" }
        if page.isTracked { marks += " tracked" }
        func count(_ kind: MachineInspection.ShadowEntry.Kind) -> Int { page.entries.count { $0.kind == kind } }
        let parts = [(count(.page), "pages"), (count(.memory), "memory"), (count(.device), "devices")]
            .filter { $0.0 > 0 }.map { "\($0.0) \($0.1)" }.joined(separator: ", ")
        line(
            String(repeating: "    ", count: depth)
                + "level \(page.level), frame \(hex(page.frame)), role \(hex(UInt64(page.role)))\(marks): "
                + (parts.isEmpty ? "empty" : parts))
        for entry in page.entries where entry.kind == .page {
            let child = pages.firstIndex { $0.role == entry.role && $0.frame == entry.frame }
            if let child { addShadowPage(child, pages, depth + 1, &shown) }
        }
    }

    private mutating func addGracePeriods(_ domains: [MachineInspection.GracePeriods]) {
        heading("grace periods")
        for domain in domains {
            line(
                "    \(domain.name): \(domain.begun) begun, \(domain.activeReaders) readers inside, the oldest since "
                    + "\(domain.oldestReaderAge), \(domain.pendingCallbacks) callbacks pending")
        }
    }

    private mutating func heading(_ title: String) { text += "\n\(title)\n" }

    private mutating func line(_ line: String) { text += line + "\n" }

    private func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

    private func pad(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(1, width - text.count))
    }
}
