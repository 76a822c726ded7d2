// SPDX-License-Identifier: Apache-2.0

// Package charts contains the tests of the Helm charts.
package charts

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gardencorev1 "github.com/gardener/gardener/pkg/apis/core/v1"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	vpaautoscalingv1 "k8s.io/autoscaler/vertical-pod-autoscaler/pkg/apis/autoscaling.k8s.io/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/config"
	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
)

const (
	extensionChart = "gardener-extension-registry-cache"
	namespace      = "extension-registry-cache"
	configDir      = "/etc/gardener-extension-registry-cache/"
)

func TestControllerObjects(t *testing.T) {
	t.Parallel()
	var got []string
	for _, obj := range render(t, nil) {
		got = append(got, obj.GetObjectKind().GroupVersionKind().Kind+" "+obj.GetNamespace()+"/"+obj.GetName())
	}
	slices.Sort(got)
	want := []string{
		"ClusterRole /" + extensionChart,
		"ClusterRoleBinding /" + extensionChart,
		"ConfigMap " + namespace + "/" + extensionChart,
		"Deployment " + namespace + "/" + extensionChart,
		"PodDisruptionBudget " + namespace + "/" + extensionChart,
		"Role " + namespace + "/" + extensionChart,
		"RoleBinding " + namespace + "/" + extensionChart,
		"Service " + namespace + "/" + extensionChart,
		"ServiceAccount " + namespace + "/" + extensionChart,
		"VerticalPodAutoscaler " + namespace + "/" + extensionChart,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	for want, image := range map[string]map[string]any{
		"ghcr.io/registry-cache/gardener-extension-registry-cache:v0.1.0": nil,
		"registry.example.com/extension:v2":                               {"repository": "registry.example.com/extension", "tag": "v2"},
	} {
		values := map[string]any{}
		if image != nil {
			values["image"] = image
		}
		if got := container(t, render(t, values)).Image; got != want {
			t.Errorf("got image %s, want %s", got, want)
		}
	}
}

func TestControllerParsesConfig(t *testing.T) {
	t.Parallel()
	const images = "images:\n- name: registry-cache\n  repository: registry.example.com/registry-cache\n  tag: v2\n"
	for _, tc := range []struct {
		name   string
		values map[string]any
		images string
		want   *configv1alpha1.ControllerConfiguration
	}{
		{"defaults", nil, "", config.Default()},
		{"all set", map[string]any{"config": map[string]any{
			"engine": "distribution", "caBundle": rootCertificate,
			"resources":   map[string]any{"requests": map[string]any{"cpu": "50m"}, "limits": map[string]any{"memory": "1Gi"}},
			"cacheServer": map[string]any{"tags": map[string]any{"maxStale": "1h"}},
			"readiness":   map[string]any{"interval": "1m", "unreadyInterval": "10s"},
		}, "imageVectorOverwrite": images}, images, &configv1alpha1.ControllerConfiguration{
			Engine: configv1alpha1.Distribution, CABundle: rootCertificate,
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("50m")}, Limits: corev1.ResourceList{"memory": resource.MustParse("1Gi")},
			},
			CacheServer: configv1alpha1.CacheServer{Tags: configv1alpha1.CacheServerTags{MaxStale: &metav1.Duration{Duration: time.Hour}}},
			Readiness:   configv1alpha1.Readiness{Interval: &metav1.Duration{Duration: time.Minute}, UnreadyInterval: &metav1.Duration{Duration: 10 * time.Second}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			objects := render(t, tc.values)
			data := find[*corev1.ConfigMap](t, objects).Data
			got, err := config.Parse([]byte(data["config.yaml"]))
			if err != nil {
				t.Fatalf("%v in\n%s", err, data["config.yaml"])
			}
			got.TypeMeta = metav1.TypeMeta{}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if strings.TrimSpace(data["images.yaml"]) != strings.TrimSpace(tc.images) {
				t.Errorf("got image vector %q, want %q", data["images.yaml"], tc.images)
			}
			var override string
			for _, env := range container(t, objects).Env {
				if env.Name == "IMAGEVECTOR_OVERWRITE" {
					override = env.Value
				}
			}
			if want := map[bool]string{true: configDir + "images.yaml"}[tc.images != ""]; override != want {
				t.Errorf("IMAGEVECTOR_OVERWRITE is %q, want %q", override, want)
			}
			if !slices.Contains(container(t, objects).Args, "--config="+configDir+"config.yaml") {
				t.Errorf("the flag --config is missing or wrong: %v", container(t, objects).Args)
			}
		})
	}
}

func TestConfigChangeRestartsController(t *testing.T) {
	t.Parallel()
	template := func(values map[string]any) map[string]string {
		return find[*appsv1.Deployment](t, render(t, values)).Spec.Template.Annotations
	}
	before := template(nil)
	if cmp.Equal(before, template(map[string]any{"config": map[string]any{"caBundle": rootCertificate}})) {
		t.Error("a changed CA bundle does not change the pod template")
	}
	if cmp.Equal(before, template(map[string]any{"imageVectorOverwrite": "images: []"})) {
		t.Error("a changed image vector does not change the pod template")
	}
	if !cmp.Equal(before, template(map[string]any{"replicaCount": 3})) {
		t.Error("a changed number of replicas changes the pod template")
	}
}

func TestPriorityClass(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		values map[string]any
		want   string
	}{
		{nil, ""},
		{map[string]any{"gardener": map[string]any{"version": "v1.147.1"}}, "gardener-system-900"},
		{map[string]any{"gardener": map[string]any{"version": "v1.147.1"}, "priorityClassName": "low"}, "low"},
	} {
		if got := find[*appsv1.Deployment](t, render(t, tc.values)).Spec.Template.Spec.PriorityClassName; got != tc.want {
			t.Errorf("%v: got priority class %q, want %q", tc.values, got, tc.want)
		}
	}
}

// Two replicas run on different nodes if possible. The PodDisruptionBudget never blocks the drain of a node.
func TestReplicasAreSpread(t *testing.T) {
	t.Parallel()
	for replicas, want := range map[int][]string{1: nil, 2: {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}} {
		objects := render(t, map[string]any{"replicaCount": replicas})
		deployment := find[*appsv1.Deployment](t, objects)
		var got []string
		for _, constraint := range deployment.Spec.Template.Spec.TopologySpreadConstraints {
			got = append(got, constraint.TopologyKey)
			if constraint.WhenUnsatisfiable != corev1.ScheduleAnyway || !cmp.Equal(constraint.LabelSelector, deployment.Spec.Selector) {
				t.Errorf("%d replicas: wrong constraint %v", replicas, constraint)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d replicas: -want +got:\n%s", replicas, diff)
		}
		budget := find[*policyv1.PodDisruptionBudget](t, objects)
		if budget.Spec.MaxUnavailable.IntValue() != 1 || !cmp.Equal(budget.Spec.Selector, deployment.Spec.Selector) || *budget.Spec.UnhealthyPodEvictionPolicy != policyv1.AlwaysAllow {
			t.Errorf("%d replicas: wrong PodDisruptionBudget %+v", replicas, budget.Spec)
		}
	}
}

func TestVerticalPodAutoscaler(t *testing.T) {
	t.Parallel()
	objects := render(t, nil)
	vpa := find[*vpaautoscalingv1.VerticalPodAutoscaler](t, objects)
	if vpa.Spec.TargetRef.Name != find[*appsv1.Deployment](t, objects).Name || vpa.Spec.ResourcePolicy.ContainerPolicies[0].ContainerName != container(t, objects).Name {
		t.Errorf("wrong target: %+v", vpa.Spec)
	}
	for _, obj := range render(t, map[string]any{"vpa": map[string]any{"enabled": false}}) {
		if _, ok := obj.(*vpaautoscalingv1.VerticalPodAutoscaler); ok {
			t.Error("the chart contains a VerticalPodAutoscaler although vpa.enabled is false")
		}
	}
}

func TestSecurityContext(t *testing.T) {
	t.Parallel()
	checkSecurityContext(t, render(t, nil))
}

// A terminating pod receives requests until all kube-proxies have removed its endpoint. It must serve them.
func TestTerminatingPodsServeRequests(t *testing.T) {
	t.Parallel()
	for name, objects := range map[string][]client.Object{
		"controller": render(t, nil), "admission": renderChart(t, runtimeChart, "garden", runtimeValues),
	} {
		handlers := container(t, objects).Lifecycle
		if handlers == nil || handlers.PreStop == nil || handlers.PreStop.Sleep == nil || handlers.PreStop.Sleep.Seconds < 5 {
			t.Errorf("%s: no preStop hook that sleeps for at least 5 s: %+v", name, handlers)
		}
	}
}

// checkSecurityContext checks the security contexts of the pod and of its container.
func checkSecurityContext(t *testing.T, objects []client.Object) {
	t.Helper()
	pod := find[*appsv1.Deployment](t, objects).Spec.Template.Spec
	wantPod := &corev1.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: new(int64(65532)), RunAsGroup: new(int64(65532)), FSGroup: new(int64(65532)),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if diff := cmp.Diff(wantPod, pod.SecurityContext); diff != "" {
		t.Errorf("pod: -want +got:\n%s", diff)
	}
	wantContainer := &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
	if diff := cmp.Diff(wantContainer, container(t, objects).SecurityContext); diff != "" {
		t.Errorf("container: -want +got:\n%s", diff)
	}
}

// Rules must not contain wildcards. Secrets must not be watched, because a watch would cache all Secrets of the Seed:
// the secrets manager lists the Secrets of one Shoot at a time, by their labels.
func TestControllerHasMinimalPermissions(t *testing.T) {
	t.Parallel()
	role := find[*rbacv1.ClusterRole](t, render(t, nil))
	for _, rule := range role.Rules {
		if slices.Contains(slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs), "*") {
			t.Errorf("wildcard in %v", rule)
		}
		if slices.Contains(rule.Resources, "secrets") && (slices.Contains(rule.Verbs, "watch") || slices.Contains(rule.Verbs, "deletecollection")) {
			t.Errorf("unnecessary permission for Secrets: %v", rule)
		}
	}
}

// The example must refer to the current version of the chart, set only values that the chart has, and set the registry
// of all images.
func TestExampleMatchesChart(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../example/controllerregistration.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents := bytes.Split(data, []byte("\n---\n"))
	if len(documents) != 2 {
		t.Fatalf("got %d documents, want a ControllerDeployment and a ControllerRegistration", len(documents))
	}
	var deployment gardencorev1.ControllerDeployment
	var registration gardencorev1beta1.ControllerRegistration
	for i, into := range []any{&deployment, &registration} {
		if err := yaml.UnmarshalStrict(documents[i], into); err != nil {
			t.Fatal(err)
		}
	}
	if got := registration.Spec.Deployment.DeploymentRefs[0].Name; got != deployment.Name {
		t.Errorf("the ControllerRegistration refers to %s, want %s", got, deployment.Name)
	}
	want := []gardencorev1beta1.ControllerResource{{Kind: "Extension", Type: "registry-cache"}}
	if diff := cmp.Diff(want, registration.Spec.Resources); diff != "" {
		t.Errorf("resources: -want +got:\n%s", diff)
	}

	var values map[string]any
	if err := json.Unmarshal(deployment.Helm.Values.Raw, &values); err != nil {
		t.Fatal(err)
	}
	chart, err := loader.LoadDir(extensionChart)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range unknownValues(values, chart.Values) {
		t.Errorf("the chart has no value %s", path)
	}
	if ref := *deployment.Helm.OCIRepository.Ref; !strings.HasSuffix(ref, "/"+chart.Metadata.Name+":"+chart.Metadata.Version) {
		t.Errorf("the example refers to %s, want %s in version %s", ref, chart.Metadata.Name, chart.Metadata.Version)
	}
	objects := render(t, values)
	for _, image := range []string{container(t, objects).Image, find[*corev1.ConfigMap](t, objects).Data["images.yaml"]} {
		if !strings.Contains(image, "registry.example.com/") {
			t.Errorf("an image is not from registry.example.com: %s", image)
		}
	}
}

// unknownValues returns the paths in values, such as "image.tag", that do not exist in defaults.
func unknownValues(values, defaults map[string]any) []string {
	var paths []string
	for key, value := range values {
		defaultValue, ok := defaults[key]
		if !ok {
			paths = append(paths, key)
			continue
		}
		subvalues, isMap := value.(map[string]any)
		if subdefaults, ok := defaultValue.(map[string]any); ok && isMap {
			for _, path := range unknownValues(subvalues, subdefaults) {
				paths = append(paths, key+"."+path)
			}
		}
	}
	return paths
}

// render renders the chart of the controller.
func render(t *testing.T, values map[string]any) []client.Object {
	t.Helper()
	return renderChart(t, extensionChart, namespace, values)
}

// renderChart renders the chart in the directory dir with its default values and the given values. Decoding of the
// objects is strict: an unknown field is an error.
func renderChart(t *testing.T, dir, namespace string, values map[string]any) []client.Object {
	t.Helper()
	chart, err := loader.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Required by the chart with subcharts; without effect on the others.
	if err := chartutil.ProcessDependencies(chart, values); err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "test", Namespace: namespace, IsInstall: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(kubernetes.SeedScheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []client.Object
	for name, content := range files {
		if !strings.HasSuffix(name, ".yaml") || strings.TrimSpace(content) == "" {
			continue
		}
		documents := utilyaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(content)))
		buffer := make([]byte, len(content)+1)
		for {
			n, err := documents.Read(buffer)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(bytes.TrimSpace(buffer[:n])) == 0 {
				// A condition of the template omits the whole document.
				continue
			}
			obj, _, err := decoder.Decode(buffer[:n], nil, nil)
			if err != nil {
				t.Fatalf("%s: %v in\n%s", name, err, buffer[:n])
			}
			objects = append(objects, obj.(client.Object))
		}
	}
	return objects
}

// find returns the only object of a type. It is an error if there are none or several.
func find[T runtime.Object](t *testing.T, objects []client.Object) T {
	t.Helper()
	var found []T
	for _, obj := range objects {
		if match, ok := obj.(T); ok {
			found = append(found, match)
		}
	}
	if len(found) != 1 {
		t.Fatalf("got %d objects of type %T, want 1", len(found), *new(T))
	}
	return found[0]
}

// container returns the only container of the Deployment.
func container(t *testing.T, objects []client.Object) corev1.Container {
	t.Helper()
	containers := find[*appsv1.Deployment](t, objects).Spec.Template.Spec.Containers
	if len(containers) != 1 {
		t.Fatalf("got %d containers, want 1", len(containers))
	}
	return containers[0]
}

// rootCertificate is a self-signed certificate. Its private key was not kept.
const rootCertificate = `-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUX0Xq9yPYsQYbqSHqqWhSF+7gKxswCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjMxNzE3MjRaGA8yMTI2MTAzMDE3MTcy
NFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOrR
R9Hg+wkhIpuGhWwBjDTtwDX6QffYczF7nTRfS/ZAKaxQm8Fe0oCYl57pg1f4+JgC
HryLMSiKm5c2ctDRbeujUzBRMB0GA1UdDgQWBBSuSC6JhKVfyxSam4xaizApOao/
QzAfBgNVHSMEGDAWgBSuSC6JhKVfyxSam4xaizApOao/QzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIDgrISaF3EQ4LjUVCNHOoXqVRLhml8/SQnf5
xf1YMSSKAiEAt7gSu6tmi3DmaQIeSUMoj9Y0dmfOSAPUWoEMrZdBKOk=
-----END CERTIFICATE-----
`
