// SPDX-License-Identifier: Apache-2.0

package lifecycle

// What the public extension gets wrong, as far as it is about the controller, and the test that shows that this one does
// not:
//
//	Services re-created with another address     TestDeletedServiceComesBack, TestTakenAddressIsGivenUp
//	Services gone before nodes forget them       TestRemovalIsOrdered
//	foreign Services with our label              TestForeignServiceWithOurLabel
//	two upstreams with the names of one          registry/validation.TestCollidingNames, TestSuffixResolvesCollision
//	a larger volume is refused, or forgotten     extension.TestVolumeGrows, TestConvergence/change (claim template)
//	a volume that was enlarged by hand           extension.TestVolumeThatIsNotGrown
//	credentials that are wrong, or half there    extension.TestBadSecretChangesNothing
//	names of users that YAML reads otherwise     extension.TestSecretsOfTheShootOwner
//	an OperatingSystemConfig without criConfig   nodeconfig.TestMutateLeavesAlone, TestMutateAddsTheConfiguration
//	a cache that is not ready fails the Shoot    every test here: no pod is ready unless the test says so
//	more than the controller needs               TestChartRolesAreEnoughAndNeeded
