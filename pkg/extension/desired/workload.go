// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/contract"
)

const (
	configVolume  = "config"
	contentVolume = "cache-volume"

	// checksumAnnotation makes the pod restart when what it reads only once changes.
	checksumAnnotation = "checksum/config"

	// user is the user and group "nonroot" of the image.
	user = 65532
)

// Options are what all caches of all Shoots have in common.
type Options struct {
	// Engine is the program that serves the caches. "" means RegistryCache.
	Engine configv1alpha1.Engine
	// Image is the reference of the engine's image. Required.
	Image string
	// Resources are those of the container. Nothing at all means DefaultResources.
	Resources corev1.ResourceRequirements
	// CABundle are roots, in PEM, which the caches trust for their upstreams beside the public ones. "" means none.
	CABundle string
	// CacheServer are valid settings of the engine RegistryCache. The zero value is its defaults.
	CacheServer configv1alpha1.CacheServer
}

// Secrets is what is secret about one cache: the contents of the Secrets that the Shoot owner has made for it, and its
// certificate. The zero value is none.
type Secrets struct {
	// Certificate is for clients of the cache. Required if it is served by https, and not used otherwise.
	Certificate *Certificate
	// Credentials are for the upstream. nil means anonymous access.
	Credentials *Credentials
	// ProxyCredentials are for the proxies of the cache. nil means no authentication.
	ProxyCredentials *Credentials
	// CABundle are roots, in PEM, which the cache trusts for its upstream beside the public ones and those of Options.
	// "" means none.
	CABundle string
}

// Credentials are a username and a password, both valid for package contract.
type Credentials struct {
	Username, Password string
}

// Workload are the objects that serve cache, all but its Service: the configuration, the StatefulSet with its volume
// claim, the NetworkPolicy, the Secret with the certificate if it has https, and the PodDisruptionBudget if it is highly
// available. The defaults of cache must be filled in (v1alpha3.SetDefaults).
//
// size is the number of bytes that the content of the cache may use on its volume. The pod template does not depend on it.
// The engine Distribution has no such limit.
//
// The pod template depends on which of secrets there are, and, unless the engine is Distribution, not on what they are.
//
// Another engine changes the Secret and the pod template, and nothing else: the StatefulSet is updated in place, and the
// next pod goes on with the volume of the one before.
func Workload(cache v1alpha3.RegistryCache, size int64, secrets Secrets, options Options) ([]client.Object, error) {
	engine, err := engineOf(cache, size, secrets, options)
	if err != nil {
		return nil, fmt.Errorf("writing the configuration of the cache of %s: %w", cache.Upstream, err)
	}
	secret := configSecret(cache, engine.files)
	set := statefulSet(cache, options, engine)
	objects := []client.Object{secret, set, networkPolicy(cache)}
	if TLS(cache) {
		certificate, err := tlsSecret(cache, secrets.Certificate)
		if err != nil {
			return nil, err
		}
		mountCertificate(set, certificate.Name)
		objects = append(objects, certificate)
	}
	if highlyAvailable(cache) {
		makeHighlyAvailable(set)
		objects = append(objects, disruptionBudget(cache))
	}
	return objects, nil
}

func configSecretName(cache v1alpha3.RegistryCache) string { return cache.ObjectName() + "-config" }

// configSecret has the same name with any content. A name with a hash would have to change in the StatefulSet at the
// same time, but the resource manager deletes the old Secret first: a pod that restarts in between would not find it.
//
// What is secret is in it, too. The kubelet replaces all files of a volume in one step, so a pod never finds a
// configuration that names files which are not there yet. They are not mounted with a subPath: such files stay as they
// were when the pod started.
func configSecret(cache v1alpha3.RegistryCache, files map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: objectMeta(cache, configSecretName(cache)), Type: corev1.SecretTypeOpaque, Data: files}
}

func statefulSet(cache v1alpha3.RegistryCache, options Options, engine engine) *appsv1.StatefulSet {
	podLabels := labels(cache)
	// What Gardener's network policies in kube-system let out.
	podLabels["networking.gardener.cloud/to-dns"] = "allowed"
	podLabels["networking.gardener.cloud/to-public-networks"] = "allowed"

	return &appsv1.StatefulSet{
		ObjectMeta: objectMeta(cache, cache.ObjectName()),
		Spec: appsv1.StatefulSetSpec{
			Replicas:             new(int32(1)),
			RevisionHistoryLimit: new(int32(2)),
			Selector:             &metav1.LabelSelector{MatchLabels: selector(cache)},
			// With OrderedReady a pod that cannot start stays as it is after its template was corrected
			// (kubernetes/kubernetes#67250).
			PodManagementPolicy: appsv1.ParallelPodManagement,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      podLabels,
					Annotations: map[string]string{checksumAnnotation: engine.checksum},
				},
				Spec: podSpec(cache, options, engine),
			},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{VolumeClaimTemplate(cache)},
		},
	}
}

func podSpec(cache v1alpha3.RegistryCache, options Options, engine engine) corev1.PodSpec {
	probe := func(path string, periodSeconds, failureThreshold int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler:     corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString(contract.DebugPortName)}},
			TimeoutSeconds:   5,
			PeriodSeconds:    periodSeconds,
			FailureThreshold: failureThreshold,
		}
	}
	return corev1.PodSpec{
		PriorityClassName:            "system-cluster-critical",
		AutomountServiceAccountToken: new(false),
		EnableServiceLinks:           new(false),
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: new(true),
			RunAsUser:    new(int64(user)),
			RunAsGroup:   new(int64(user)),
			FSGroup:      new(int64(user)),
			// Without it each start would change the owner of every file on the volume.
			FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
			SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name:            contract.ContainerName,
			Image:           options.Image,
			ImagePullPolicy: corev1.PullIfNotPresent,
			Args:            engine.args,
			Env:             append(proxyEnvironment(cache, engine.proxyURLs), engine.environment...),
			Ports: []corev1.ContainerPort{
				{Name: contract.RegistryPortName, ContainerPort: contract.RegistryPort, Protocol: corev1.ProtocolTCP},
				{Name: contract.DebugPortName, ContainerPort: contract.DebugPort, Protocol: corev1.ProtocolTCP},
			},
			Resources: resourcesOf(options),
			// Nodes notice by themselves when the cache does not answer; readiness keeps requests from a pod that is
			// starting, liveness ends a process that hangs.
			ReadinessProbe: probe(engine.readinessPath, 5, 3),
			LivenessProbe:  probe(engine.livenessPath, 20, 6),
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false),
				ReadOnlyRootFilesystem:   new(true),
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
			VolumeMounts: []corev1.VolumeMount{
				{Name: contentVolume, MountPath: config.Default().Storage.Root},
				{Name: configVolume, MountPath: engine.configDir, ReadOnly: true},
			},
		}},
		Volumes: []corev1.Volume{{
			Name: configVolume,
			VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
				SecretName:  configSecretName(cache),
				DefaultMode: new(int32(0o440)),
			}},
		}},
	}
}

// Variables for the proxies of a program.
const (
	httpProxyVariable  = "HTTP_PROXY"
	httpsProxyVariable = "HTTPS_PROXY"
)

// proxyEnvironment returns the variables for the proxies of a cache. The value of a variable in keys is that key of the
// config Secret.
func proxyEnvironment(cache v1alpha3.RegistryCache, keys map[string]string) []corev1.EnvVar {
	proxy := cache.Proxy
	if proxy == nil {
		return nil
	}
	var environment []corev1.EnvVar
	for _, variable := range []struct {
		name  string
		value *string
	}{
		{httpProxyVariable, proxy.HTTPProxy},
		{httpsProxyVariable, proxy.HTTPSProxy},
		{"NO_PROXY", proxy.NoProxy},
	} {
		if key, ok := keys[variable.name]; ok {
			environment = append(environment, corev1.EnvVar{Name: variable.name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: configSecretName(cache)}, Key: key,
			}}})
		} else if variable.value != nil {
			// The kubelet would take "$(" for the beginning of a variable; validation lets no "$" in.
			environment = append(environment, corev1.EnvVar{Name: variable.name, Value: *variable.value})
		}
	}
	return environment
}
