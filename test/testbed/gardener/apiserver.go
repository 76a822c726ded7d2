// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	gardencorev1 "github.com/gardener/gardener/pkg/apis/core/v1"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	operationsv1alpha1 "github.com/gardener/gardener/pkg/apis/operations/v1alpha1"
	securityv1alpha1 "github.com/gardener/gardener/pkg/apis/security/v1alpha1"
	seedmanagementv1alpha1 "github.com/gardener/gardener/pkg/apis/seedmanagement/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	apiServerPort = 8443
	// apiServiceTimeout bounds the wait for kube-apiserver to find the groups available; it looks every few seconds.
	apiServiceTimeout = 2 * time.Minute

	// What kubeadm gives kube-apiserver to reach etcd, on the control-plane node.
	etcdCA         = "/etc/kubernetes/pki/etcd/ca.crt"
	etcdClientCert = "/etc/kubernetes/pki/apiserver-etcd-client.crt"
	etcdClientKey  = "/etc/kubernetes/pki/apiserver-etcd-client.key"
)

// gardenGroups are the API groups that gardener-apiserver serves, those that kubectl prefers first.
func gardenGroups() []schema.GroupVersion {
	return []schema.GroupVersion{
		gardencorev1beta1.SchemeGroupVersion,
		gardencorev1.SchemeGroupVersion,
		operationsv1alpha1.SchemeGroupVersion,
		securityv1alpha1.SchemeGroupVersion,
		seedmanagementv1alpha1.SchemeGroupVersion,
	}
}

// startAPIServer installs gardener-apiserver, waits until it is ready, and then has kube-apiserver serve its groups.
//
// While it is down no namespace can be deleted: kube-apiserver cannot tell what is in one. Hence a new version is
// started beside the old one.
func startAPIServer(ctx context.Context, c client.Client, image string) error {
	served, err := ensureCertificate(ctx, c, apiServer, time.Now())
	if err != nil {
		return err
	}
	for _, object := range apiServerObjects(image, served) {
		if err := apply(ctx, c, object); err != nil {
			return err
		}
	}
	if err := waitForRollout(ctx, c, client.ObjectKey{Namespace: namespace, Name: apiServer}); err != nil {
		return err
	}
	services := apiServices(served.ca)
	for _, service := range services {
		if err := apply(ctx, c, service); err != nil {
			return err
		}
	}
	for _, service := range services {
		if err := poll.Until(ctx, 500*time.Millisecond, apiServiceTimeout, func(ctx context.Context) error {
			service := service.DeepCopy()
			if err := c.Get(ctx, client.ObjectKeyFromObject(service), service); err != nil {
				return err
			}
			for _, condition := range service.Status.Conditions {
				if condition.Type == apiregistrationv1.Available {
					if condition.Status == apiregistrationv1.ConditionTrue {
						return nil
					}
					return errors.New(condition.Message)
				}
			}
			return errors.New("kube-apiserver has not looked at it yet")
		}); err != nil {
			return fmt.Errorf("waiting for APIService %s: %w", service.Name, err)
		}
	}
	return nil
}

// apiServices tell kube-apiserver to forward the groups.
func apiServices(ca []byte) []*apiregistrationv1.APIService {
	var services []*apiregistrationv1.APIService
	for i, version := range gardenGroups() {
		services = append(services, &apiregistrationv1.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: version.Version + "." + version.Group},
			Spec: apiregistrationv1.APIServiceSpec{
				Group:                version.Group,
				Version:              version.Version,
				CABundle:             ca,
				Service:              &apiregistrationv1.ServiceReference{Namespace: namespace, Name: apiServer, Port: new(int32(443))},
				GroupPriorityMinimum: 9999,
				VersionPriority:      int32(100 - i),
			},
		})
	}
	return services
}

// apiServerObjects are in the order in which they have to be applied. The server keeps its objects in kubeadm's etcd,
// under a prefix of its own, so it runs where kubeadm has put the credentials for that: as root on the control-plane
// node.
func apiServerObjects(image string, served certificate) []client.Object {
	meta := metav1.ObjectMeta{Name: apiServer, Namespace: namespace}
	global := metav1.ObjectMeta{Name: "registry-cache-testbed:" + apiServer}
	selector := map[string]string{"app": apiServer}
	serving := tlsSecret(apiServer, served)
	sum := sha256.Sum256(served.cert)

	mounts := []corev1.VolumeMount{{Name: "certs", MountPath: "/certs", ReadOnly: true}}
	volumes := []corev1.Volume{{Name: "certs", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: serving.Name, DefaultMode: new(int32(0o440))}}}}
	for _, file := range []struct{ name, path string }{{"etcd-ca", etcdCA}, {"etcd-cert", etcdClientCert}, {"etcd-key", etcdClientKey}} {
		mounts = append(mounts, corev1.VolumeMount{Name: file.name, MountPath: file.path, ReadOnly: true})
		volumes = append(volumes, corev1.Volume{Name: file.name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: file.path, Type: new(corev1.HostPathFile)}}})
	}
	https := func(path string) *corev1.Probe {
		p := probe(path)
		p.HTTPGet.Port, p.HTTPGet.Scheme = intstr.FromInt32(apiServerPort), corev1.URISchemeHTTPS
		return p
	}

	deployment := &appsv1.Deployment{
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(1)),
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: new(intstr.FromInt32(1)), MaxUnavailable: new(intstr.FromInt32(0))},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: selector, Annotations: map[string]string{"checksum/certificate": hex.EncodeToString(sum[:])}},
				Spec: corev1.PodSpec{
					ServiceAccountName: apiServer,
					PriorityClassName:  "system-cluster-critical",
					NodeSelector:       map[string]string{"node-role.kubernetes.io/control-plane": ""},
					Tolerations:        []corev1.Toleration{{Key: "node-role.kubernetes.io/control-plane", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}},
					SecurityContext: &corev1.PodSecurityContext{
						RunAsUser:      new(int64(0)),
						RunAsGroup:     new(int64(0)),
						SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
					},
					Containers: []corev1.Container{{
						Name:            apiServer,
						Image:           image,
						ImagePullPolicy: corev1.PullNever,
						Args: []string{
							"--authorization-always-allow-paths=/healthz,/livez,/readyz",
							"--cluster-identity=" + clusterIdentity,
							"--etcd-servers=https://$(HOST_IP):2379",
							"--etcd-prefix=/registry-gardener",
							"--etcd-cafile=" + etcdCA,
							"--etcd-certfile=" + etcdClientCert,
							"--etcd-keyfile=" + etcdClientKey,
							"--tls-cert-file=/certs/" + corev1.TLSCertKey,
							"--tls-private-key-file=/certs/" + corev1.TLSPrivateKeyKey,
							fmt.Sprintf("--secure-port=%d", apiServerPort),
							"--log-level=info",
							"--log-format=text",
						},
						Env: []corev1.EnvVar{
							{Name: "HOST_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "status.hostIP"}}},
							// A published node image may be newer than what this Gardener supports.
							{Name: "EXPERIMENTAL_DISABLE_KUBERNETES_VERSION_CHECK", Value: "true"},
						},
						Ports:          []corev1.ContainerPort{{Name: "https", ContainerPort: apiServerPort, Protocol: corev1.ProtocolTCP}},
						ReadinessProbe: https("/readyz"),
						LivenessProbe:  https("/livez"),
						Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
							corev1.ResourceCPU:    resource.MustParse("50m"),
							corev1.ResourceMemory: resource.MustParse("200Mi"),
						}},
						SecurityContext: &corev1.SecurityContext{
							AllowPrivilegeEscalation: new(false),
							ReadOnlyRootFilesystem:   new(true),
							Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
						},
						VolumeMounts: mounts,
					}},
					Volumes: volumes,
				},
			},
		},
	}

	return append(administrator(meta, global),
		serving,
		&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
			Selector: selector,
			Ports:    []corev1.ServicePort{{Name: "https", Port: 443, TargetPort: intstr.FromInt32(apiServerPort), Protocol: corev1.ProtocolTCP}},
		}},
		deployment,
	)
}

// clusterIdentity is how this cluster is known in Gardener.
const clusterIdentity = "kind"

// administrator returns a ServiceAccount that may do anything.
func administrator(meta, global metav1.ObjectMeta) []client.Object {
	return []client.Object{
		&corev1.ServiceAccount{ObjectMeta: meta},
		&rbacv1.ClusterRole{ObjectMeta: global, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}},
			{NonResourceURLs: []string{"*"}, Verbs: []string{"*"}},
		}},
		binding(meta, global),
	}
}

// binding gives the ClusterRole to the ServiceAccount.
func binding(meta, global metav1.ObjectMeta) client.Object {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: global,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: global.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: meta.Name, Namespace: meta.Namespace}},
	}
}
