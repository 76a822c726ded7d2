// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	restfake "k8s.io/client-go/rest/fake"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// healthy are the objects of a Shoot with one node in which all is well, and which has been so for an hour.
type healthy struct {
	shoot     *gardencorev1beta1.Shoot
	node      *corev1.Node
	lease     *coordinationv1.Lease
	secret    *corev1.Secret
	extension *extensionsv1alpha1.Extension
	resource  *resourcesv1alpha1.ManagedResource
	apiServer int // HTTP status of /healthz
}

func newHealthy() *healthy {
	before := metav1.NewTime(time.Now().Add(-time.Hour))
	h := &healthy{
		shoot: &gardencorev1beta1.Shoot{ObjectMeta: metav1.ObjectMeta{Namespace: "garden-dev", Name: "crazy-botany"}},
		node: &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "worker", Labels: map[string]string{"worker.gardener.cloud/pool": "pool"}, Annotations: map[string]string{"checksum/cloud-config-data": "sum"}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}, NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.34.4"}},
		},
		lease: &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "gardener-node-agent-worker"},
			Spec:       coordinationv1.LeaseSpec{RenewTime: new(metav1.NowMicro()), LeaseDurationSeconds: new(int32(40))},
		},
		secret:    &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: NodeAgentSecretName, Annotations: map[string]string{"checksum/data-script": "sum"}}},
		extension: &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: shootNamespace, Name: "registry-cache"}},
		resource:  &resourcesv1alpha1.ManagedResource{ObjectMeta: metav1.ObjectMeta{Namespace: shootNamespace, Name: "caches"}},
		apiServer: http.StatusOK,
	}
	h.shoot.Spec.Kubernetes.Version = "1.34.4"
	h.shoot.Spec.Provider.Workers = []gardencorev1beta1.Worker{{Name: "pool", Minimum: 1}}
	h.shoot.Status.UID, h.shoot.Status.TechnicalID = "uid", shootNamespace
	h.shoot.Status.LastOperation = &gardencorev1beta1.LastOperation{Type: "Reconcile", State: "Succeeded", LastUpdateTime: before}
	for _, conditionType := range []gardencorev1beta1.ConditionType{"APIServerAvailable", "ControlPlaneHealthy", "EveryNodeReady", "SystemComponentsHealthy"} {
		h.shoot.Status.Conditions = append(h.shoot.Status.Conditions, gardencorev1beta1.Condition{Type: conditionType, Status: "False", LastTransitionTime: before})
	}
	for conditionType, status := range map[gardencorev1beta1.ConditionType]gardencorev1beta1.ConditionStatus{"ResourcesApplied": "True", "ResourcesHealthy": "True", "ResourcesProgressing": "False"} {
		h.resource.Status.Conditions = append(h.resource.Status.Conditions, gardencorev1beta1.Condition{Type: conditionType, Status: status})
	}
	return h
}

// check lets the gardenlet look and returns the Shoot.
func (h *healthy) check(t *testing.T) *gardencorev1beta1.Shoot {
	t.Helper()
	c := fake.NewClientBuilder().WithScheme(Scheme()).WithStatusSubresource(&gardencorev1beta1.Shoot{}).
		WithObjects(h.shoot, h.node, h.lease, h.secret, h.extension, h.resource).Build()
	care := &care{client: c, clock: clock.RealClock{}, shootAPIServer: &restfake.RESTClient{
		NegotiatedSerializer: scheme.Codecs,
		Client: restfake.CreateHTTPClient(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: h.apiServer, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader("{}"))}, nil
		}),
	}}
	result, err := care.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(h.shoot)})
	if err != nil {
		t.Fatal(err)
	}
	if result.RequeueAfter != carePeriod {
		t.Errorf("it comes back after %s", result.RequeueAfter)
	}
	shoot := &gardencorev1beta1.Shoot{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(h.shoot), shoot); err != nil {
		t.Fatal(err)
	}
	return shoot
}

func TestConditionsOfAHealthyShoot(t *testing.T) {
	t.Parallel()
	h := newHealthy()
	h.shoot.Status.Conditions = append(h.shoot.Status.Conditions, gardencorev1beta1.Condition{Type: "SomebodyElses", Status: "False"})
	shoot := h.check(t)
	for _, condition := range shoot.Status.Conditions {
		want := gardencorev1beta1.ConditionTrue
		if condition.Type == "SomebodyElses" {
			want = gardencorev1beta1.ConditionFalse
		}
		if condition.Status != want {
			t.Errorf("condition is %+v, want it %s", condition, want)
		}
	}
	if len(shoot.Status.Conditions) != 5 || shoot.Status.LastOperation == nil {
		t.Errorf("status is %+v", shoot.Status)
	}
	if got := shoot.Labels["shoot.gardener.cloud/status"]; got != "unhealthy" {
		t.Errorf("label is %q, want somebody else's condition to count", got)
	}
}

func TestConditionsNameWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name          string
		harm          func(*healthy)
		conditionType gardencorev1beta1.ConditionType
		reason, want  string
	}{
		{"API server", func(h *healthy) { h.apiServer = http.StatusInternalServerError }, "APIServerAvailable", "HealthzRequestFailed", "/healthz"},
		{"node", func(h *healthy) { h.node.Status.Conditions[0].Status = corev1.ConditionFalse }, "EveryNodeReady", "NodeUnhealthy", `Node "worker"`},
		{"nodes missing", func(h *healthy) { h.shoot.Spec.Provider.Workers[0].Minimum = 2 }, "EveryNodeReady", "MissingNodes", "(1/2)"},
		{"node with an old configuration", func(h *healthy) { h.node.Annotations["checksum/cloud-config-data"] = "old" }, "EveryNodeReady", "OperatingSystemConfigOutdated", `node worker has applied configuration "old", want "sum"`},
		{"agent ended", func(h *healthy) { h.lease.Spec.RenewTime = new(metav1.NewMicroTime(time.Now().Add(-time.Minute))) }, "EveryNodeReady", "NodeAgentUnhealthy", `stopped running on node "worker"`},
		{"agent missing", func(h *healthy) { h.lease.Name = "gardener-node-agent-other" }, "EveryNodeReady", "NodeAgentUnhealthy", `not running on node "worker"`},
		{"unit", func(h *healthy) {
			h.node.Status.Conditions = append(h.node.Status.Conditions, corev1.NodeCondition{Type: "SystemdUnitsReady", Status: corev1.ConditionFalse, Message: "a.service failed"})
		}, "EveryNodeReady", "SystemdUnitsNotReady", "a.service failed"},
		{"system component", func(h *healthy) {
			h.resource.Status.Conditions = []gardencorev1beta1.Condition{{Type: "ResourcesApplied", Status: "False", Reason: "ApplyFailed", Message: "no"}}
		}, "SystemComponentsHealthy", "ApplyFailed", "no"},
		{"control plane component", func(h *healthy) {
			h.resource.Spec.Class = new("seed")
			h.resource.Status.Conditions = nil
		}, "ControlPlaneHealthy", "MissingManagedResourceCondition", "caches"},
		{"extension", func(h *healthy) {
			h.extension.Spec.Type = "registry-cache"
			h.extension.Status.Conditions = []gardencorev1beta1.Condition{{Type: "SystemComponentsHealthy", Status: "False", Message: "cache of docker.io"}}
		}, "SystemComponentsHealthy", "registry-cacheUnhealthyReport", "cache of docker.io"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := newHealthy()
			tc.harm(h)
			for _, condition := range h.check(t).Status.Conditions {
				want := gardencorev1beta1.ConditionTrue
				if condition.Type == tc.conditionType {
					// A condition is Progressing first if it has not been False with this reason before.
					want = gardencorev1beta1.ConditionProgressing
					if condition.Reason != tc.reason || !strings.Contains(condition.Message, tc.want) {
						t.Errorf("condition is %+v, want %s: %s", condition, tc.reason, tc.want)
					}
				}
				if condition.Status != want {
					t.Errorf("condition is %+v, want it %s", condition, want)
				}
			}
		})
	}
}

func TestHibernatedShootIsNotChecked(t *testing.T) {
	t.Parallel()
	h := newHealthy()
	h.shoot.Spec.Hibernation = &gardencorev1beta1.Hibernation{Enabled: new(true)}
	h.node.Status.Conditions = nil
	for _, condition := range h.check(t).Status.Conditions {
		if condition.Status != gardencorev1beta1.ConditionTrue || condition.Reason != "ConditionNotChecked" {
			t.Errorf("condition is %+v", condition)
		}
	}
}

func TestConditionsArePardonedUntilTheShootIsThere(t *testing.T) {
	t.Parallel()
	h := newHealthy()
	h.shoot.Status.Conditions = nil
	h.shoot.Status.LastOperation = &gardencorev1beta1.LastOperation{Type: "Create", State: "Processing", LastUpdateTime: metav1.Now()}
	h.node.Annotations = nil
	condition := v1beta1helper.GetCondition(h.check(t).Status.Conditions, "EveryNodeReady")
	if condition == nil || condition.Status != gardencorev1beta1.ConditionProgressing || condition.Reason != "OperatingSystemConfigOutdated" {
		t.Errorf("condition is %+v", condition)
	}
}
