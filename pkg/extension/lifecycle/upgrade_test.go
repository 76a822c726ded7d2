// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"os"
	"testing"

	"github.com/gardener/gardener/pkg/client/kubernetes"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// What earlier versions have deployed is taken over: the address, the volume and the StatefulSet stay, and nothing is
// deployed twice. testdata has the objects of a cache for docker.io as a version has written them; a version that changes
// them adds a file.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	const upstream = "docker.io"
	for _, version := range []string{"v0"} {
		t.Run(version, func(t *testing.T) {
			content, err := os.ReadFile("testdata/" + version + ".yaml")
			if err != nil {
				t.Fatal(err)
			}
			var services, others []client.Object
			for document := range bytes.SplitSeq(content, []byte("\n---\n")) {
				obj, _, err := kubernetes.ShootCodec.UniversalDeserializer().Decode(document, nil, nil)
				if err != nil {
					t.Fatalf("%v in\n%s", err, document)
				}
				if service, ok := obj.(*corev1.Service); ok {
					// In the band of the range from which the API server gives nobody an address while there are others.
					service.Spec.ClusterIP = "10.0.0.3"
					services = append(services, service)
				} else {
					others = append(others, obj.(client.Object))
				}
			}
			s := sharedLandscape(t).newShoot(t, "upgrade-"+version)
			service := "extension-registry-cache-service-" + objectName(upstream)
			if err := s.writeResource(t, service, services...); err != nil {
				t.Fatal(err)
			}
			if err := s.writeResource(t, workloads, others...); err != nil {
				t.Fatal(err)
			}
			s.waitUntilApplied(t, service)
			s.waitForPods(t, upstream)
			before := s.cache(t, upstream)

			s.deploy(t, cacheFor(upstream, "10Gi"))
			s.requireDeployed(t, cacheFor(upstream, "10Gi"))
			after := s.cache(t, upstream)
			// The pod gets the new image.
			before.pod, before.revision = after.pod, after.revision
			before.requireSame(t, after)
			if got := s.status(t)[upstream].ClusterIP; got != before.address {
				t.Errorf("nodes are told %s, want %s", got, before.address)
			}
		})
	}
}
