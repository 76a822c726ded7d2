// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	monitoringv1alpha1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	vpaautoscalingv1 "k8s.io/autoscaler/vertical-pod-autoscaler/pkg/apis/autoscaling.k8s.io/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

var monitoringObjects = []string{"ConfigMap registry-cache-dashboards", "PrometheusRule shoot-registry-cache", "ScrapeConfig shoot-registry-cache"}

func TestMonitoringComesAndGoes(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]func(*Actuator, context.Context, logr.Logger, *extensionsv1alpha1.Extension) error{
		"Delete": (*Actuator).Delete, "ForceDelete": (*Actuator).ForceDelete, "Migrate": (*Actuator).Migrate,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestShoot(t)
			s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
			if diff := cmp.Diff(monitoringObjects, s.monitoring(t)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff([]string{"docker.io", "ghcr.io"}, s.watchedUpstreams(t)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			// The second time there is something to change.
			s.reconcile(t, s.ask(t, "docker.io"))
			if diff := cmp.Diff([]string{"docker.io"}, s.watchedUpstreams(t)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for range 2 {
				if err := remove(s.actuator, t.Context(), logr.Discard(), s.extension(t)); err != nil {
					t.Fatal(err)
				}
				if left := s.monitoring(t); len(left) > 0 {
					t.Errorf("left in the Seed: %v", left)
				}
			}
		})
	}
}

func TestTestingShootHasNoMonitoring(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.setShootSpec(t, `{"purpose":"testing"}`)
	s.reconcile(t, s.extension(t))
	if left := s.monitoring(t); len(left) > 0 {
		t.Errorf("left in the Seed: %v", left)
	}
}

// Caches must work in a Seed without Prometheus' operator.
func TestSeedWithoutMonitoring(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	none := func(group string) error {
		if group == "monitoring.coreos.com" {
			return &meta.NoKindMatchError{GroupKind: schema.GroupKind{Group: group}}
		}
		return nil
	}
	s.actuator.seed = interceptor.NewClient(s.seed.(client.WithWatch), interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, obj runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			if err := none(obj.(schema.ObjectKind).GroupVersionKind().Group); err != nil {
				return err
			}
			return c.Apply(ctx, obj, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			if err := none(obj.GetObjectKind().GroupVersionKind().Group); err != nil {
				return err
			}
			return c.Delete(ctx, obj, opts...)
		},
	})
	s.reconcile(t, s.ask(t, "docker.io"))
	if diff := cmp.Diff(monitoringObjects[:1], s.monitoring(t)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := s.actuator.Delete(t.Context(), logr.Discard(), s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if left := s.monitoring(t); len(left) > 0 {
		t.Errorf("left in the Seed: %v", left)
	}
}

// Any other error is one: gardenlet tries again.
func TestMonitoringFails(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.actuator.seed = interceptor.NewClient(s.seed.(client.WithWatch), interceptor.Funcs{
		Apply: func(context.Context, client.WithWatch, runtime.ApplyConfiguration, ...client.ApplyOption) error {
			return errInjected
		},
	})
	err := s.actuator.Reconcile(t.Context(), logr.Discard(), s.ask(t, "docker.io"))
	if !errors.Is(err, errInjected) || !strings.HasPrefix(err.Error(), "applying ScrapeConfig "+shootNamespace+"/shoot-registry-cache: ") {
		t.Errorf("got error %v", err)
	}
}

func TestVerticalPodAutoscalerWhereTheShootHasIt(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	autoscaled := func() (targets []string) {
		for _, obj := range s.objects(t, workloads) {
			if vpa, ok := obj.(*vpaautoscalingv1.VerticalPodAutoscaler); ok {
				targets = append(targets, vpa.Spec.TargetRef.Kind+" "+vpa.Spec.TargetRef.Name)
			}
		}
		return targets
	}
	for _, step := range []struct {
		spec string
		want []string
	}{
		{`{}`, nil},
		{`{"kubernetes":{"verticalPodAutoscaler":{"enabled":true}}}`, []string{"StatefulSet registry-docker-io"}},
		{`{"kubernetes":{"verticalPodAutoscaler":{"enabled":false}}}`, nil},
	} {
		s.setShootSpec(t, step.spec)
		s.reconcile(t, s.ask(t, "docker.io"))
		if diff := cmp.Diff(step.want, autoscaled()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", step.spec, diff)
		}
	}
}

// setShootSpec changes the Shoot in the Cluster.
func (s *testShoot) setShootSpec(t *testing.T, spec string) {
	t.Helper()
	cluster := &extensionsv1alpha1.Cluster{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, cluster); err != nil {
		t.Fatal(err)
	}
	cluster.Spec.Shoot.Raw = []byte(`{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot","metadata":{"name":"crazy-botany"},"spec":` + spec + `}`)
	if err := s.seed.Update(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
}

// monitoring lists what the Seed's monitoring is told in the namespace of the Shoot.
func (s *testShoot) monitoring(t *testing.T) []string {
	t.Helper()
	var names []string
	for kind, list := range map[string]client.ObjectList{
		"ConfigMap": &corev1.ConfigMapList{}, "PrometheusRule": &monitoringv1.PrometheusRuleList{}, "ScrapeConfig": &monitoringv1alpha1.ScrapeConfigList{},
	} {
		if err := s.seed.List(t.Context(), list, client.InNamespace(shootNamespace)); err != nil {
			t.Fatal(err)
		}
		if err := meta.EachListItem(list, func(item runtime.Object) error {
			names = append(names, kind+" "+item.(client.Object).GetName())
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	return names
}

// watchedUpstreams are those whose caches an alert watches.
func (s *testShoot) watchedUpstreams(t *testing.T) []string {
	t.Helper()
	rule := &monitoringv1.PrometheusRule{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: "shoot-registry-cache"}, rule); err != nil {
		t.Fatal(err)
	}
	var upstreams []string
	for _, group := range rule.Spec.Groups {
		for _, rule := range group.Rules {
			if upstream, ok := rule.Labels["upstream"]; ok {
				upstreams = append(upstreams, upstream)
			}
		}
	}
	return upstreams
}
