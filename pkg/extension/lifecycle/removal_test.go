// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// withdrawal is how long the Service of a removed cache outlives its endpoints, at least.
const withdrawal = 5 * time.Second

// A cache that is removed loses its pod first, so that connections are refused at once, and its Service when the nodes
// have had the time to notice. A cache that stays is not touched. The pods stand for the endpoints: those are made of pods
// on nodes only.
func TestRemovalIsOrdered(t *testing.T) {
	t.Parallel()
	for _, whole := range []bool{false, true} {
		t.Run(fmt.Sprintf("all caches %t", whole), func(t *testing.T) {
			t.Parallel()
			gone, stays := fmt.Sprintf("gone-%t.ordered.example.com", whole), fmt.Sprintf("stays-%t.ordered.example.com", whole)
			s := sharedLandscape(t).newShoot(t, fmt.Sprintf("ordered-%t", whole))
			s.deploy(t, cacheFor(gone), cacheFor(stays))
			s.waitForPods(t, gone)
			s.waitForPods(t, stays)
			staying, _ := s.getService(t, objectName(stays))

			withoutPod := s.watchDeletion(t, &corev1.PodList{}, gone)
			withoutService := s.watchDeletion(t, &corev1.ServiceList{}, gone)
			if whole {
				if err := s.actuator.Delete(t.Context(), s.log, s.extension(t)); err != nil {
					t.Fatal(err)
				}
			} else {
				s.deploy(t, cacheFor(stays))
				if got := s.status(t); len(got) != 1 || got[stays].ClusterIP != staying.Spec.ClusterIP {
					t.Errorf("got status %+v", got)
				}
			}
			if first, last := withoutPod(), withoutService(); last.Sub(first) < withdrawal {
				t.Errorf("the Service went %s after its pod, want at least %s", last.Sub(first), withdrawal)
			}
			if live, ok := s.getService(t, staying.Name); ok == whole || ok && live.UID != staying.UID {
				t.Errorf("the Service of the other cache: exists %t", ok)
			}
			claims := &corev1.PersistentVolumeClaim{ObjectMeta: kubeSystem("cache-volume-" + objectName(gone) + "-0")}
			if err := s.shootCluster().WaitUntilDeleted(t.Context(), soon, claims); err != nil {
				t.Error(err)
			}
		})
	}
}

// watchDeletion watches the objects of the cache of upstream and returns a function that waits until one is gone, and
// returns when that was.
func (s *shoot) watchDeletion(t *testing.T, list client.ObjectList, upstream string) func() time.Time {
	t.Helper()
	watcher, err := s.shootCluster().Client().Watch(t.Context(), list, client.InNamespace("kube-system"), client.MatchingLabels{"upstream-host": upstream})
	if err != nil {
		t.Fatal(err)
	}
	at := make(chan time.Time, 1)
	var done sync.WaitGroup
	done.Go(func() {
		for event := range watcher.ResultChan() {
			if event.Type == watch.Deleted {
				at <- time.Now()
				return
			}
		}
	})
	t.Cleanup(func() {
		watcher.Stop()
		done.Wait()
	})
	return func() time.Time {
		t.Helper()
		select {
		case when := <-at:
			return when
		case <-time.After(soon):
			t.Fatalf("nothing of %T of %s was deleted", list, upstream)
			return time.Time{}
		}
	}
}

// A cache that is asked for again while its removal is under way must not lose its Service afterwards.
func TestRemovedCacheIsAskedForAgain(t *testing.T) {
	t.Parallel()
	const again, stays = "again.example.com", "stays.again.example.com"
	s := sharedLandscape(t).newShoot(t, "again")
	s.deploy(t, cacheFor(again), cacheFor(stays))
	service, _ := s.getService(t, objectName(again))
	// What holds up the removal: the Service has a finalizer of somebody else.
	setFinalizers := func(finalizers ...string) {
		t.Helper()
		patch := client.MergeFrom(service.DeepCopy())
		service.Finalizers = finalizers
		if err := s.shootCluster().Client().Patch(t.Context(), service, patch); err != nil {
			t.Fatal(err)
		}
	}
	setFinalizers("example.com/held")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := s.actuator.Reconcile(ctx, s.log, s.ask(t, cacheFor(stays))); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got error %v, want that the removal takes too long", err)
	}

	done := make(chan error, 1)
	ex := s.ask(t, cacheFor(again), cacheFor(stays))
	go func() { done <- s.actuator.Reconcile(t.Context(), s.log, ex) }()
	// It has to be waited for, or to fail until the removal has ended.
	if _, ok := s.getService(t, service.Name); !ok {
		t.Fatal("the Service is gone already")
	}
	setFinalizers()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	resource, ok := s.resources(t)["extension-registry-cache-service-"+service.Name]
	if !ok || resource.DeletionTimestamp != nil {
		t.Errorf("ManagedResource exists %t, deleted at %v", ok, resource.DeletionTimestamp)
	}
	live, ok := s.getService(t, service.Name)
	if !ok || live.DeletionTimestamp != nil || live.Spec.ClusterIP != s.status(t)[again].ClusterIP {
		t.Errorf("Service exists %t, deleted at %v, has %s; nodes know %s", ok, live.DeletionTimestamp, live.Spec.ClusterIP, s.status(t)[again].ClusterIP)
	}
	if live.Spec.ClusterIP != service.Spec.ClusterIP {
		t.Logf("the address is another one, as the first was given back: %s, %s", service.Spec.ClusterIP, live.Spec.ClusterIP)
	}
}

// ForceDelete is for a Shoot whose API is gone for good, and with it the resource manager. gardenlet takes the finalizers
// from the ManagedResources and deletes the Secrets when all Extensions are gone (reconciler_force_delete.go).
func TestForceDelete(t *testing.T) {
	t.Parallel()
	l := ownLandscape(t, seedOptions, shootOptions)
	s := l.newShoot(t, "force-delete")
	s.deploy(t, cacheFor("force-delete.example.com"))
	s.waitUntilApplied(t, workloads)
	l.hibernate(t)
	start := time.Now()
	if err := s.actuator.ForceDelete(t.Context(), s.log, s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s: something was waited for", took)
	}
	names := []string{}
	for name, resource := range s.resources(t) {
		names = append(names, name)
		if resource.DeletionTimestamp == nil {
			t.Errorf("ManagedResource %s was not asked to go", name)
		}
	}
	if slices.Sort(names); len(names) != 2 {
		t.Errorf("ManagedResources %v, want two", names)
	}
	// Again, as after a restart of the controller.
	if err := s.actuator.ForceDelete(t.Context(), s.log, s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if l.shoot.Client().Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: objectName("force-delete.example.com")}, &appsv1.StatefulSet{}) != nil {
		t.Error("this test is to leave the objects in the Shoot alone")
	}
}
