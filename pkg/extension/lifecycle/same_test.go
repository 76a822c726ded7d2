// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"fmt"
	"maps"
	"testing"

	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// cacheObjects are the objects of a cache in the Shoot that must not be replaced under a cache that serves.
type cacheObjects struct {
	service, set, pod, claim types.UID
	address                  string
	// revision of the pod template: with another one the pod is restarted.
	revision string
}

func (s *shoot) cache(t *testing.T, upstream string) cacheObjects {
	t.Helper()
	service := &corev1.Service{ObjectMeta: kubeSystem(objectName(upstream))}
	set := &appsv1.StatefulSet{ObjectMeta: kubeSystem(objectName(upstream))}
	pod := &corev1.Pod{ObjectMeta: kubeSystem(objectName(upstream) + "-0")}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: kubeSystem("cache-volume-" + objectName(upstream) + "-0")}
	for _, obj := range []client.Object{service, set, pod, claim} {
		if !s.exists(t, obj) {
			t.Fatalf("%T %s does not exist", obj, obj.GetName())
		}
	}
	return cacheObjects{
		service: service.UID, set: set.UID, pod: pod.UID, claim: claim.UID,
		address: service.Spec.ClusterIP, revision: set.Status.UpdateRevision,
	}
}

func (before cacheObjects) requireSame(t *testing.T, after cacheObjects) {
	t.Helper()
	if before != after {
		t.Errorf("the cache was not left alone:\nbefore %+v\nafter  %+v", before, after)
	}
}

// versions are the resource versions of all that the extension writes in the Seed.
func (s *shoot) versions(t *testing.T) map[string]string {
	t.Helper()
	versions := map[string]string{"Extension": s.extension(t).ResourceVersion}
	secrets := &corev1.SecretList{}
	resources := &resourcesv1alpha1.ManagedResourceList{}
	for _, list := range []client.ObjectList{secrets, resources} {
		if err := s.seed.Client().List(t.Context(), list, client.InNamespace(s.namespace)); err != nil {
			t.Fatal(err)
		}
	}
	for _, secret := range secrets.Items {
		versions["Secret "+secret.Name] = secret.ResourceVersion
	}
	for _, resource := range resources.Items {
		// Not the resource version: the resource manager writes conditions at any time.
		versions["ManagedResource "+resource.Name] = fmt.Sprintf("%s, generation %d, %v", resource.UID, resource.Generation, resource.Annotations)
	}
	return versions
}

func equalVersions(t *testing.T, before, after map[string]string) {
	t.Helper()
	if !maps.Equal(before, after) {
		t.Errorf("something was written:\nbefore %v\nafter  %v", before, after)
	}
}
