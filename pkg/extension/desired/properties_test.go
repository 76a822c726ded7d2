// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// variant is one combination of what a cache may be asked for.
type variant struct {
	name    string
	cache   v1alpha3.RegistryCache
	secrets Secrets
	options Options
}

const (
	secretUsername = "user-that-nobody-may-see"
	secretPassword = "password-that-nobody-may-see"
	proxyUsername  = "proxy-user-that-is-secret"
	proxyPassword  = "proxy-password-that-is-secret"
)

// variants are, for each of three upstreams, no choice, each choice alone, all of them, and all but one: so each two
// choices occur together, one without the other, and not at all.
func variants() []variant {
	choices := []func(*variant){
		func(v *variant) { v.options.Engine = configv1alpha1.Distribution },
		func(v *variant) { v.cache.HighAvailability = &v1alpha3.HighAvailability{Enabled: new(true)} },
		func(v *variant) { v.secrets.Credentials = &Credentials{secretUsername, secretPassword} },
		func(v *variant) { v.secrets.CABundle = "of the Shoot owner" },
		func(v *variant) { v.options.CABundle = "of the operator" },
		func(v *variant) { v.cache.Proxy = &v1alpha3.Proxy{HTTPSProxy: new("http://proxy:3128")} },
		func(v *variant) {
			v.cache.Proxy = &v1alpha3.Proxy{HTTPSProxy: new("http://proxy:3128"), SecretReferenceName: new("proxy")}
			v.secrets.ProxyCredentials = &Credentials{proxyUsername, proxyPassword}
		},
		func(v *variant) {
			v.cache.Volume = &v1alpha3.Volume{StorageClassName: new("fast"), Size: new(resource.MustParse("1Gi"))}
		},
		func(v *variant) { v.cache.GarbageCollection = &v1alpha3.GarbageCollection{TTL: &metav1.Duration{}} },
		func(v *variant) { v.cache.ServiceNameSuffix = new(strings.Repeat("x", 54)) },
	}
	var all []variant
	for _, upstream := range []string{"docker.io", "10.1.2.3:5000", strings.Repeat("a23456789.", 20) + "example.com:65535"} {
		add := func(name string, chosen func(i int) bool) {
			v := variant{name: upstream + ", " + name, options: Options{Image: "registry.example.com/engine:v1"}}
			v.cache.Upstream = upstream
			for i, choose := range choices {
				if chosen(i) {
					choose(&v)
				}
			}
			v.cache = defaulted(v.cache)
			all = append(all, v)
		}
		add("no choice", func(int) bool { return false })
		add("all choices", func(int) bool { return true })
		for one := range choices {
			add(fmt.Sprintf("choice %d", one), func(i int) bool { return i == one })
			add(fmt.Sprintf("all but choice %d", one), func(i int) bool { return i != one })
		}
	}
	return all
}

func (v variant) objects(t *testing.T) []client.Object {
	t.Helper()
	return append(workload(t, v.cache, v.secrets, v.options), Service(v.cache, "10.0.0.1"), VerticalPodAutoscaler(v.cache))
}

func (v variant) statefulSet(t *testing.T) *appsv1.StatefulSet {
	t.Helper()
	for _, obj := range v.objects(t) {
		if set, ok := obj.(*appsv1.StatefulSet); ok {
			return set
		}
	}
	t.Fatalf("%s: no StatefulSet", v.name)
	return nil
}

func TestEveryObjectIsFoundByItsLabels(t *testing.T) {
	t.Parallel()
	for _, v := range variants() {
		check := func(what string, labels map[string]string) {
			t.Helper()
			for key, want := range map[string]string{
				"upstream-host": v1alpha3.UpstreamHostValue(v.cache.Upstream), "app": v.cache.ObjectName(), "app.kubernetes.io/name": "registry-cache",
			} {
				if labels[key] != want {
					t.Errorf("%s: %s: label %s is %q, want %q", v.name, what, key, labels[key], want)
				}
			}
			for key, value := range labels {
				if errs := validation.IsValidLabelValue(value); len(errs) > 0 {
					t.Errorf("%s: %s: label %s: %v", v.name, what, key, errs)
				}
			}
		}
		for _, obj := range v.objects(t) {
			check(fmt.Sprintf("%T", obj), obj.GetLabels())
			if obj.GetNamespace() != "kube-system" {
				t.Errorf("%s: %T is in namespace %q", v.name, obj, obj.GetNamespace())
			}
			if set, ok := obj.(*appsv1.StatefulSet); ok {
				check("pod", set.Spec.Template.Labels)
				check("claim", set.Spec.VolumeClaimTemplates[0].Labels)
			}
		}
	}
}

// Kubernetes derives names and labels from those of a StatefulSet, and some of them it refuses only when it makes pods.
func TestNamesFitTheirLimits(t *testing.T) {
	t.Parallel()
	for _, v := range variants() {
		seen := map[string]bool{}
		for _, obj := range v.objects(t) {
			valid := validation.IsDNS1123Subdomain
			if _, ok := obj.(*corev1.Service); ok {
				valid = validation.IsDNS1035Label
			}
			if errs := valid(obj.GetName()); len(errs) > 0 {
				t.Errorf("%s: %T %s: %v", v.name, obj, obj.GetName(), errs)
			}
			key := fmt.Sprintf("%T %s", obj, obj.GetName())
			if seen[key] {
				t.Errorf("%s: two objects are %s", v.name, key)
			}
			seen[key] = true
		}
		set := v.statefulSet(t)
		for what, value := range map[string]string{
			"label statefulset.kubernetes.io/pod-name": set.Name + "-0",
			"label controller-revision-hash":           set.Name + "-" + strings.Repeat("f", 10),
			"host name of the pod":                     set.Name + "-0",
		} {
			if errs := validation.IsDNS1123Label(value); len(errs) > 0 {
				t.Errorf("%s: %s: %s: %v", v.name, what, value, errs)
			}
		}
	}
}

func TestSecretsAreNowhereElse(t *testing.T) {
	t.Parallel()
	found := map[string]int{}
	for _, v := range variants() {
		for _, obj := range v.objects(t) {
			if secret, ok := obj.(*corev1.Secret); ok {
				for _, value := range secret.Data {
					for _, password := range []string{secretPassword, proxyPassword} {
						if strings.Contains(string(value), password) {
							found[password]++
						}
					}
				}
				secret.Data = nil
			}
			text, err := json.Marshal(obj)
			if err != nil {
				t.Fatal(err)
			}
			for _, value := range []string{secretUsername, secretPassword, proxyUsername, proxyPassword} {
				if strings.Contains(string(text), value) {
					t.Errorf("%s: %T holds credentials", v.name, obj)
				}
			}
		}
	}
	for _, password := range []string{secretPassword, proxyPassword} {
		if found[password] != len(variants())/2 {
			t.Errorf("%d Secrets hold %s, want half of %d: this test does not test what it should", found[password], password, len(variants()))
		}
	}
}

func TestEqualInputGivesEqualObjects(t *testing.T) {
	t.Parallel()
	for _, v := range variants() {
		if diff := cmp.Diff(v.objects(t), v.objects(t)); diff != "" {
			t.Errorf("%s: -first +second:\n%s", v.name, diff)
		}
	}
}

// What an engine finds must be as the other one has left it: the StatefulSet is updated in place, which Kubernetes allows
// for the pod template alone, and the next pod has the same volume, user and groups.
func TestEnginesTakeOverFromEachOther(t *testing.T) {
	t.Parallel()
	ofTheEngine := []cmp.Option{
		cmpopts.IgnoreFields(corev1.Container{}, "Image", "Args", "Env", "ReadinessProbe", "LivenessProbe"),
		cmpopts.IgnoreFields(metav1.ObjectMeta{}, "Annotations"),
		cmpopts.IgnoreFields(corev1.Secret{}, "Data"),
		cmp.FilterValues(func(a, b corev1.VolumeMount) bool { return a.Name == configVolume && b.Name == configVolume }, cmp.Ignore()),
	}
	for _, v := range variants() {
		ours, stock := v, v
		ours.options.Engine, stock.options.Engine = configv1alpha1.RegistryCache, configv1alpha1.Distribution
		if diff := cmp.Diff(ours.objects(t), stock.objects(t), ofTheEngine...); diff != "" {
			t.Errorf("%s: -ours +stock:\n%s", v.name, diff)
		}
		if a, b := ours.statefulSet(t).Spec.Template.Annotations, stock.statefulSet(t).Spec.Template.Annotations; cmp.Equal(a, b) {
			t.Errorf("%s: both engines have the checksum %v", v.name, a)
		}
	}
}

// The container sees nothing but the volume and the config Secret.
func TestFilesThatAreNamedAreMounted(t *testing.T) {
	t.Parallel()
	for _, v := range variants() {
		engine, err := engineOf(v.cache, v.cache.Volume.Size.Value(), v.secrets, v.options)
		if err != nil {
			t.Fatal(err)
		}
		container := v.statefulSet(t).Spec.Template.Spec.Containers[0]
		var dir string
		for _, mount := range container.VolumeMounts {
			if mount.Name == configVolume {
				dir = mount.MountPath + "/"
			}
		}
		file, ok := strings.CutPrefix(container.Args[len(container.Args)-1], dir)
		if _, found := engine.files[file]; !ok || !found {
			t.Errorf("%s: the arguments are %v, the files of %s are %v", v.name, container.Args, dir, engine.files)
		}
	}
}
