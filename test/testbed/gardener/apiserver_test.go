// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
)

// podTemplate returns that of the only Deployment.
func podTemplate(t *testing.T, objects []client.Object) corev1.PodTemplateSpec {
	t.Helper()
	for _, object := range objects {
		if deployment, ok := object.(*appsv1.Deployment); ok {
			return deployment.Spec.Template
		}
	}
	t.Fatal("there is no Deployment")
	return corev1.PodTemplateSpec{}
}

func TestAPIServerRollsOnlyForAReason(t *testing.T) {
	t.Parallel()
	served := certificate{cert: []byte("a")}
	first := podTemplate(t, apiServerObjects("image", served))
	for range 20 { // what comes from a map would differ sooner or later
		if diff := cmp.Diff(first, podTemplate(t, apiServerObjects("image", served))); diff != "" {
			t.Fatalf("the pod template differs without a reason:\n%s", diff)
		}
	}
	if cmp.Equal(first, podTemplate(t, apiServerObjects("image", certificate{cert: []byte("b")}))) {
		t.Error("the pod template is the same, so the pod would go on with the old certificate")
	}
}

func TestGardenletRollsWhenItsInputsChange(t *testing.T) {
	t.Parallel()
	options := gardenlet.Options{Version: "v1", Kubeconfig: []byte("a"), Containerd: gardenlet.Containerd{SandboxImage: "pause", CgroupDriver: "systemd"}}
	first := podTemplate(t, gardenletObjects("image", options))
	for name, change := range map[string]func(*gardenlet.Options){
		"kubeconfig":    func(o *gardenlet.Options) { o.Kubeconfig = []byte("b") },
		"sandbox image": func(o *gardenlet.Options) { o.Containerd.SandboxImage = "other" },
		"cgroup driver": func(o *gardenlet.Options) { o.Containerd.CgroupDriver = "cgroupfs" },
	} {
		changed := options
		change(&changed)
		if cmp.Equal(first, podTemplate(t, gardenletObjects("image", changed))) {
			t.Errorf("the pod goes on with the old %s", name)
		}
	}
}

func TestLandscapeIsAppliedTwice(t *testing.T) {
	t.Parallel()
	unavailable := 2
	c := fake.NewClientBuilder().WithScheme(gardenlet.Scheme()).WithInterceptorFuncs(interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, obj runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			if unavailable > 0 {
				unavailable--
				return &apiutil.ErrResourceDiscoveryFailed{gardencorev1beta1.SchemeGroupVersion: apierrors.NewServiceUnavailable("for a moment")}
			}
			return c.Apply(ctx, obj, opts...)
		},
	}).Build()
	for range 2 {
		if err := applyLandscape(t.Context(), c, "1.34.4"); err != nil {
			t.Fatal(err)
		}
	}
	profile := &gardencorev1beta1.CloudProfile{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: Local}, profile); err != nil {
		t.Fatal(err)
	}
	if versions := profile.Spec.Kubernetes.Versions; len(versions) != 1 || versions[0].Version != "1.34.4" {
		t.Errorf("versions on offer are %+v, want that of the cluster", versions)
	}
}
