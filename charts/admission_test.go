// SPDX-License-Identifier: Apache-2.0

package charts

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	operatorv1alpha1 "github.com/gardener/gardener/pkg/apis/operator/v1alpha1"
	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	vpaautoscalingv1 "k8s.io/autoscaler/vertical-pod-autoscaler/pkg/apis/autoscaling.k8s.io/v1"
	"sigs.k8s.io/yaml"
)

const (
	admissionName    = "gardener-extension-registry-cache-admission"
	runtimeChart     = admissionName + "/charts/runtime"
	applicationChart = admissionName + "/charts/application"
)

// runtimeValues and applicationValues are the values that gardener-operator sets for an Extension named registry-cache.
// It merges them into the values of the Extension, which are the same for both charts.
var (
	runtimeValues = map[string]any{"gardener": map[string]any{
		"runtimeCluster": map[string]any{"priorityClassName": "gardener-garden-system-400"},
		"virtualCluster": map[string]any{"enabled": true, "namespace": "extension-registry-cache"},
	}}
	applicationValues = map[string]any{"gardener": map[string]any{
		"virtualCluster": map[string]any{"enabled": true, "serviceAccount": map[string]any{"name": "extension-admission-registry-cache", "namespace": "kube-system"}},
	}}
)

func TestAdmissionObjects(t *testing.T) {
	t.Parallel()
	gardenObjects := []string{"ClusterRole /", "ClusterRoleBinding /"}
	runtimeObjects := func(namespace string) []string {
		var kinds []string
		for _, kind := range []string{"Deployment", "PodDisruptionBudget", "Role", "RoleBinding", "Service", "ServiceAccount", "VerticalPodAutoscaler"} {
			kinds = append(kinds, kind+" "+namespace+"/")
		}
		return kinds
	}
	for _, tc := range []struct {
		name, dir, namespace string
		values               map[string]any
		want                 []string
	}{
		{"runtime", runtimeChart, "garden", runtimeValues, runtimeObjects("garden")},
		{"application", applicationChart, "extension-registry-cache", applicationValues, gardenObjects},
		{"both", admissionName, "n", nil, slices.Concat(gardenObjects, runtimeObjects("n"))},
		{"without VPA", admissionName, "n", map[string]any{"runtime": map[string]any{"vpa": map[string]any{"enabled": false}}}, slices.Concat(gardenObjects, runtimeObjects("n")[:6])},
	} {
		var got []string
		for _, obj := range renderChart(t, tc.dir, tc.namespace, tc.values) {
			got = append(got, obj.GetObjectKind().GroupVersionKind().Kind+" "+obj.GetNamespace()+"/"+strings.TrimPrefix(obj.GetName(), admissionName))
		}
		slices.Sort(got)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tc.name, diff)
		}
	}
}

func TestAdmissionPod(t *testing.T) {
	t.Parallel()
	objects := renderChart(t, runtimeChart, "garden", runtimeValues)
	checkSecurityContext(t, objects)
	deployment := find[*appsv1.Deployment](t, objects)
	pod := deployment.Spec.Template
	if pod.Spec.PriorityClassName != "gardener-garden-system-400" {
		t.Errorf("got priority class %q", pod.Spec.PriorityClassName)
	}
	for _, label := range []string{
		"networking.gardener.cloud/to-dns", "networking.gardener.cloud/to-runtime-apiserver", "networking.resources.gardener.cloud/to-virtual-garden-kube-apiserver-tcp-443",
	} {
		if pod.Labels[label] != "allowed" {
			t.Errorf("label %s: got %q, want allowed", label, pod.Labels[label])
		}
	}
	want := []corev1.Volume{{Name: "certificates", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
		Medium: corev1.StorageMediumMemory, SizeLimit: pod.Spec.Volumes[0].EmptyDir.SizeLimit,
	}}}}
	if diff := cmp.Diff(want, pod.Spec.Volumes); diff != "" {
		t.Errorf("volumes: -want +got:\n%s", diff)
	}
	for kind, selector := range map[string]map[string]string{
		"PodDisruptionBudget": find[*policyv1.PodDisruptionBudget](t, objects).Spec.Selector.MatchLabels,
		"Service":             find[*corev1.Service](t, objects).Spec.Selector,
		"Deployment":          deployment.Spec.Selector.MatchLabels,
	} {
		for key, value := range selector {
			if pod.Labels[key] != value {
				t.Errorf("the %s selects label %s=%s, which the pods do not have", kind, key, value)
			}
		}
	}
	vpa := find[*vpaautoscalingv1.VerticalPodAutoscaler](t, objects)
	if vpa.Spec.TargetRef.Name != deployment.Name || vpa.Spec.ResourcePolicy.ContainerPolicies[0].ContainerName != container(t, objects).Name {
		t.Errorf("wrong target of the VerticalPodAutoscaler: %v, %v", vpa.Spec.TargetRef, vpa.Spec.ResourcePolicy.ContainerPolicies)
	}
}

// With permission to list Secrets, the admission could read those of all projects in the garden without their names.
func TestAdmissionHasMinimalPermissions(t *testing.T) {
	t.Parallel()
	objects := renderChart(t, applicationChart, "extension-registry-cache", applicationValues)
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}},
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"validatingwebhookconfigurations"}, Verbs: []string{"create"}},
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"validatingwebhookconfigurations"}, ResourceNames: []string{admissionName}, Verbs: []string{"get", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, ResourceNames: []string{"extension-registry-cache"}, Verbs: []string{"get"}},
	}
	if diff := cmp.Diff(want, find[*rbacv1.ClusterRole](t, objects).Rules); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	wantSubjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "extension-admission-registry-cache", Namespace: "kube-system"}}
	if diff := cmp.Diff(wantSubjects, find[*rbacv1.ClusterRoleBinding](t, objects).Subjects); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, obj := range renderChart(t, runtimeChart, "garden", runtimeValues) {
		if _, clusterWide := obj.(*rbacv1.ClusterRole); clusterWide {
			t.Errorf("the chart runtime has the ClusterRole %s, want only Roles", obj.GetName())
		}
	}
}

// In a release of the parent chart, the ServiceAccount of the pods has the permissions in the garden.
func TestAdmissionInOneCluster(t *testing.T) {
	t.Parallel()
	objects := renderChart(t, admissionName, "n", map[string]any{"runtime": map[string]any{"image": map[string]any{"repository": "registry.example.com/extension", "tag": "v2"}}})
	account := find[*corev1.ServiceAccount](t, objects)
	want := []rbacv1.Subject{{Kind: "ServiceAccount", Name: account.Name, Namespace: account.Namespace}}
	if diff := cmp.Diff(want, find[*rbacv1.ClusterRoleBinding](t, objects).Subjects); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := container(t, objects).Image; got != "registry.example.com/extension:v2" {
		t.Errorf("got image %s", got)
	}
}

// The example must refer to charts of this repository, in their current versions, and set only values that they have.
func TestOperatorExampleMatchesCharts(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../example/operator-extension.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var extension operatorv1alpha1.Extension
	if err := yaml.UnmarshalStrict(data, &extension); err != nil {
		t.Fatal(err)
	}
	if want := []gardencorev1beta1.ControllerResource{{Kind: "Extension", Type: "registry-cache"}}; !cmp.Equal(want, extension.Spec.Resources) {
		t.Errorf("got resources %v, want %v", extension.Spec.Resources, want)
	}
	deployment := extension.Spec.Deployment
	for _, tc := range []struct {
		dir    string
		helm   *operatorv1alpha1.ExtensionHelm
		values []byte
	}{
		{extensionChart, deployment.ExtensionDeployment.Helm, deployment.ExtensionDeployment.Values.Raw},
		{runtimeChart, deployment.AdmissionDeployment.RuntimeCluster.Helm, deployment.AdmissionDeployment.Values.Raw},
		{applicationChart, deployment.AdmissionDeployment.VirtualCluster.Helm, nil},
	} {
		chart, err := loader.LoadDir(tc.dir)
		if err != nil {
			t.Fatal(err)
		}
		if ref := *tc.helm.OCIRepository.Ref; !strings.HasSuffix(ref, "/"+chart.Metadata.Name+":"+chart.Metadata.Version) {
			t.Errorf("the example refers to %s, want %s in version %s", ref, chart.Metadata.Name, chart.Metadata.Version)
		}
		var values map[string]any
		if tc.values == nil {
			continue
		}
		if err := json.Unmarshal(tc.values, &values); err != nil {
			t.Fatal(err)
		}
		for _, path := range unknownValues(values, chart.Values) {
			t.Errorf("the chart %s has no value %s", filepath.Base(tc.dir), path)
		}
		if got := container(t, renderChart(t, tc.dir, "garden", values)).Image; got != "registry.example.com/gardener-extension-registry-cache:v0.1.0" {
			t.Errorf("%s: got image %s", filepath.Base(tc.dir), got)
		}
	}
}
