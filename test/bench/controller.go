// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kubeclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/gobuild"
)

const (
	// cachesOfShoot is the number of caches of each Shoot.
	cachesOfShoot = 1
	// reconcileTimeout is the limit for the creation of the pods of all Shoots, and again for the ready condition of all
	// caches.
	reconcileTimeout = 5 * time.Minute
)

// controllerCost measures requests, CPU time and memory of the controller for Shoots with ready caches and without
// changes. One kube-apiserver is the Seed, a second one is the API of all Shoots.
func controllerCost(ctx context.Context, b *bench) (err error) {
	shoots, watched := 100, 2*time.Minute
	if b.quick {
		shoots, watched = 5, 10*time.Second
	}
	l, err := startLandscape(ctx, filepath.Join(b.dir, "landscape"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop(), os.RemoveAll(l.dir)) }()
	program := filepath.Join(b.dir, "landscape", "controller")
	if err := gobuild.Build(ctx, gobuild.Options{Dir: ".", Packages: []string{"./cmd/gardener-extension-registry-cache"}, Output: program}); err != nil {
		return err
	}
	for n := range shoots {
		if err := l.addShoot(ctx, n); err != nil {
			return fmt.Errorf("adding Shoot %d: %w", n, err)
		}
	}
	controller, err := l.startController(ctx, program, filepath.Join(b.dir, "controller.log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, controller.stop()) }()
	err = poll(ctx, reconcileTimeout, func() error { return l.markPods(ctx, shoots*cachesOfShoot) })
	if err == nil {
		err = poll(ctx, reconcileTimeout, func() error { return l.allReady(ctx, shoots) })
	}
	if err != nil {
		return err
	}
	series := fmt.Sprintf("controller/shoots=%d", shoots)

	before, err := controller.usage()
	if err != nil {
		return err
	}
	from := time.Now()
	end := time.NewTimer(watched)
	defer end.Stop()
	select {
	case <-end.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	to := time.Now()
	after, err := controller.usage()
	if err != nil {
		return err
	}
	b.results.Add(series, ours, "cpu-s/s", (after.cpuSeconds-before.cpuSeconds)/to.Sub(from).Seconds())
	b.results.Add(series, ours, "B", float64(after.peakRSS))
	seed, shoot, err := l.requests(from, to)
	if err != nil {
		return err
	}
	b.results.Add(series, ours, "seed-req/h", float64(seed)/to.Sub(from).Hours())
	b.results.Add(series, ours, "shoot-req/h", float64(shoot)/to.Sub(from).Hours())
	return nil
}

// shootNamespace returns the namespace of a Shoot in the Seed. upstreamOf makes upstreams unique, because all Shoots
// share one API.
func shootNamespace(n int) string { return fmt.Sprintf("shoot--dev--s%d", n) }

func upstreamOf(shoot, cache int) string { return fmt.Sprintf("u%d.s%d.example.com", cache, shoot) }

// addShoot creates the objects that gardenlet creates for a Shoot before it creates the Extension, and the Extension.
func (l *landscape) addShoot(ctx context.Context, n int) error {
	namespace := shootNamespace(n)
	var caches []map[string]any
	for k := range cachesOfShoot {
		caches = append(caches, map[string]any{"upstream": upstreamOf(n, k), "volume": map[string]any{"size": "1Gi"}})
	}
	config, err := json.Marshal(map[string]any{"apiVersion": "registry.extensions.gardener.cloud/v1alpha3", "kind": "RegistryConfig", "caches": caches})
	if err != nil {
		return err
	}
	raw := func(kind string) runtime.RawExtension {
		return runtime.RawExtension{Raw: fmt.Appendf(nil, `{"apiVersion":"core.gardener.cloud/v1beta1","kind":%q,"metadata":{"name":"s%d","namespace":"garden-dev"}}`, kind, n)}
	}
	seed := raw("Seed")
	extension := &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: "registry-cache",
		Annotations: map[string]string{"gardener.cloud/operation": "reconcile", "gardener.cloud/timestamp": time.Now().UTC().Format(time.RFC3339Nano)},
	}}
	extension.Spec.Type = "registry-cache"
	extension.Spec.ProviderConfig = &runtime.RawExtension{Raw: config}
	for _, object := range []kubeclient.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{
			"gardener.cloud/role": "shoot", "extensions.gardener.cloud/registry-cache": "true",
		}}},
		&extensionsv1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: namespace}, Spec: extensionsv1alpha1.ClusterSpec{
			CloudProfile: raw("CloudProfile"), Seed: &seed, Shoot: raw("Shoot"),
		}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "gardener-internal"}, Data: map[string][]byte{"kubeconfig": l.shootConfig}},
		extension,
	} {
		if err := l.seed.Client().Create(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// markPods replaces the kubelets: it sets the pods of all caches to ready. It returns an error until the wanted number of
// pods exists.
func (l *landscape) markPods(ctx context.Context, want int) error {
	pods := &corev1.PodList{}
	if err := l.shoot.Client().List(ctx, pods, kubeclient.InNamespace(metav1.NamespaceSystem), kubeclient.HasLabels{"upstream-host"}); err != nil {
		return err
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Status.Phase == corev1.PodRunning {
			continue
		}
		if err := l.shoot.MarkReady(ctx, pod, fmt.Sprintf("10.1.%d.%d", i/250, i%250+1)); err != nil {
			return err
		}
	}
	if len(pods.Items) < want {
		return fmt.Errorf("%d of %d pods exist", len(pods.Items), want)
	}
	return nil
}

// allReady returns an error until all Extensions are reconciled and report ready caches.
func (l *landscape) allReady(ctx context.Context, want int) error {
	extensions := &extensionsv1alpha1.ExtensionList{}
	if err := l.seed.Client().List(ctx, extensions); err != nil {
		return err
	}
	ready := 0
	var waitsFor string
	for _, extension := range extensions.Items {
		last := extension.Status.LastOperation
		status := &v1alpha3.RegistryStatus{}
		if raw := extension.Status.ProviderStatus; raw != nil {
			if err := json.Unmarshal(raw.Raw, status); err != nil {
				return err
			}
		}
		if last != nil && last.State == gardencorev1beta1.LastOperationStateSucceeded && isReady(status) {
			ready++
		} else if last != nil {
			waitsFor = fmt.Sprintf("; %s: %s %s", extension.Namespace, last.State, last.Description)
		}
	}
	if ready < want {
		return fmt.Errorf("%d of %d Shoots have ready caches%s", ready, want, waitsFor)
	}
	return nil
}

func isReady(status *v1alpha3.RegistryStatus) bool {
	for _, cache := range status.Caches {
		for _, condition := range cache.Conditions {
			if condition.Type == "Ready" && condition.Status != metav1.ConditionTrue {
				return false
			}
		}
		if len(cache.Conditions) == 0 {
			return false
		}
	}
	return len(status.Caches) == cachesOfShoot
}
