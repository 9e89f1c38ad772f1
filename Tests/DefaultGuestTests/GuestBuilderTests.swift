import DefaultGuest
import Testing

@Suite struct GuestBuilderTests {
    @Test func theKernelPackageIsTheMetapackagesDependency() {
        let listing = """
            linux-image-cloud-amd64
              Depends: linux-base
              Depends: linux-image-6.1.0-56-cloud-amd64
              Breaks: linux-image-5.10
            """
        #expect(GuestBuilder.kernelPackage(inDependencies: listing) == "linux-image-6.1.0-56-cloud-amd64")
    }

    @Test func theFirstOfAlternativesIsTaken() {
        let listing = """
            linux-image-amd64
             |Depends: linux-image-6.12.9+deb13-amd64
              Depends: linux-image-6.12.9+deb13-amd64-unsigned
            """
        #expect(GuestBuilder.kernelPackage(inDependencies: listing) == "linux-image-6.12.9+deb13-amd64")
    }

    @Test func anUnknownPackageHasNone() {
        #expect(GuestBuilder.kernelPackage(inDependencies: "") == nil)
        #expect(GuestBuilder.kernelPackage(inDependencies: "linux-image-amd64\n") == nil)
    }
}
